"""What people decide about dead letters, as changes of rows: try again, or give up."""

from __future__ import annotations

from msgspec.structs import replace

from engine.declare.timers import TIMERS, Timer, TimerKey, kind_of_topic
from engine.declare.topic import Topic
from engine.declare.unit_of_work import UnitOfWork
from engine.failures.dead_letters import (
    DEAD_LETTERS,
    DISCARDED,
    RESOLVED,
    RETRYING,
    Action,
    DeadLetter,
    close_letter,
    with_action,
)
from engine.failures.lanes import LANES, WAITING, LaneKey, WaitingKey, WaitingRecord, advance, append, try_later


def try_again(
    work: UnitOfWork, number: int, letter: DeadLetter, due_ms: int, by: str | None, decision: str | None = None
) -> None:
    """Let a letter's record be handled again at `due_ms`: in its own place, if its aggregate waits for it."""
    asked = with_action(letter, Action(work.now_ms, "retry", by, None, decision))
    work.put(DEAD_LETTERS, number, replace(asked, state=RETRYING, replays=letter.replays + 1))
    kind = kind_of_topic(letter.topic)
    if kind is not None:
        headers = tuple([(name, value or b"") for name, value in letter.headers])
        timer = Timer(kind, (letter.key or b"").decode(), letter.offset, letter.value or b"", 0, number, headers)
        work.put(TIMERS, TimerKey(due_ms, kind, timer.key), timer)
        return
    key = LaneKey(letter.agent, letter.key or b"")
    waiting = WaitingRecord(letter.offset, letter.timestamp_ms, letter.value, letter.headers, letter=number)
    lane = work.get(LANES, key)
    if lane is not None and lane.parked == number:
        try_later(work, key, letter.topic, waiting, due_ms)
    else:
        append(work, key, letter.topic, waiting, due_ms)


def send_home(
    work: UnitOfWork, number: int, letter: DeadLetter, key: bytes, by: str | None, decision: str | None = None
) -> None:
    """Send a record that lay in the wrong partition to that of its key, as its producer should have."""
    work.put(DEAD_LETTERS, number, with_action(letter, Action(work.now_ms, "retry", by, None, decision)))
    headers = [(name, value or b"") for name, value in letter.headers]
    work.send_raw(Topic(letter.topic, ""), key, letter.value or b"", headers)
    close_letter(work, number, RESOLVED, detail="sent to the partition of its key")


def give_up(
    work: UnitOfWork, number: int, letter: DeadLetter, reason: str, by: str | None, decision: str | None = None
) -> None:
    """Discard a letter; its aggregate goes on with what waits behind it."""
    close_letter(work, number, DISCARDED, by, reason, decision)
    key = LaneKey(letter.agent, letter.key or b"")
    lane = work.get(LANES, key)
    if lane is None:
        return
    waiting = work.get(WAITING, WaitingKey(*key, lane.first))
    if lane.parked == number or (waiting is not None and waiting.letter == number):
        advance(work, key)
