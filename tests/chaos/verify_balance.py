"""Input = applied + waiting + dead letters + discarded: where is every record that an agent has passed?

As in `verifier`, nothing here uses the services' own code. MOMENT_CHECKS hold whenever nothing runs, also right after
all workers were killed: everything of one partition that they compare is written by one producer, in one transaction
after the other, so what can be read of it ends with the same transaction everywhere. END_CHECKS hold as well once all
letters are retried or discarded and everything is processed.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from tests.chaos.failure_books import HANDLED, FailureBooks, Fate, Letter, Place, Source
from tests.chaos.verifier import (
    COMMANDS,
    CONSUMERS,
    DEAD_LETTERS,
    EVENTS,
    check_history,
    check_integration_events,
    check_orders_table,
    check_versions,
)
from tests.chaos.world import Place as RecordPlace
from tests.chaos.world import Record, World

ORDERS_AGENT = CONSUMERS[COMMANDS]
TIMERS = "timers"

Check = Callable[[FailureBooks], list[str]]


# ---- every record is in one place


def check_places(books: FailureBooks) -> list[str]:
    """Whatever waits or is a dead letter is a record that its agent has passed, is kept once, and not as both."""
    problems = []
    records = {
        Place(source.agent, source.partition, record.offset): source.topic
        for source in books.positions
        for record in books.passed(source)
    }
    for place in sorted(books.letters_at.keys() | books.waiting_at.keys()):
        letters, waiting = books.letters_at.get(place, []), books.waiting_at.get(place, [])
        if place not in records and place.agent != TIMERS:
            problems.append(f"{place} failed, but its agent has not passed such a record")
        if len(letters) > 1:
            problems.append(f"{place} is more than one dead letter: {[letter.id for letter in letters]}")
        if len(waiting) > 1:
            problems.append(f"{place} waits more than once: {waiting}")
        for entry in waiting:
            if letters and (entry.letter != letters[0].number or letters[0].state not in ("retrying", "discarded")):
                problems.append(f"{place} waits and is the {letters[0].state} dead letter {letters[0].id}")
            if not letters and entry.letter is not None:
                problems.append(f"{place} waits for the retry of dead letter {entry.letter}, which there is not")
        if not waiting and place.agent != TIMERS and any(letter.state == "retrying" for letter in letters):
            problems.append(f"dead letter {letters[0].id} is being retried, but does not wait for it")
    return problems


def check_lanes(books: FailureBooks) -> list[str]:
    """What waits for an aggregate is complete, and begins with a dead letter or with what is due some time."""
    numbers = defaultdict(set)
    for entry in books.waiting:
        numbers[entry.agent, entry.partition, entry.key].add(entry.number)
    problems, parked = [], set()
    for lane in books.lanes:
        is_parked = lane.parked is not None
        expected = set(range(lane.first + is_parked, lane.end))
        found = numbers.pop((lane.agent, lane.partition, lane.key), set())
        if found != expected or is_parked != (lane.due_ms is None) or lane.first >= lane.end:
            problems.append(f"{lane} has the records {sorted(found)}")
        if lane.parked is not None:
            parked.add((lane.partition, lane.parked))
    problems += [f"{key} waits for nothing, and nothing gives it back: {found}" for key, found in numbers.items()]
    behind = {(letter.partition, letter.number) for letter in books.letters if letter.state == "open" and letter.parks}
    return problems + [f"dead letter {number} should be open with its aggregate behind it, and is not, or not both"
                       for number in sorted(parked ^ behind)]  # fmt: skip


def check_letters(books: FailureBooks) -> list[str]:
    """Each dead letter has its row and was told, byte for byte, as often as it failed; open ones are counted."""
    told: defaultdict[str, list[Record]] = defaultdict(list)
    for record in books.world.records(DEAD_LETTERS):
        told[dict(record.headers)["dead_letter_id"].decode()].append(record)
    topics = {letter.row["topic"] for letter in books.letters}
    originals = {record.place: record for topic in topics for record in books.world.records(topic)}
    problems = []
    for letter in books.letters:
        copies = told.pop(letter.id, [])
        if len(copies) != letter.failures:
            problems.append(f"dead letter {letter.id} failed {letter.failures} times, and was told {len(copies)} times")
        if any((copy.key, copy.value or b"") != (letter.key, letter.value) for copy in copies):
            problems.append(f"dead letter {letter.id} is not the record that was told: {copies}")
        original = originals.get(_origin(letter))
        if original is not None and (original.key, original.value or b"") != (letter.key, letter.value):
            problems.append(f"dead letter {letter.id} differs from its record {original}")
    problems += [f"dead letter {id} has no row" for id in told]
    open_letters = Counter((letter.partition, letter.row["topic"]) for letter in books.letters if _is_open(letter))
    for place in sorted(open_letters.keys() | books.counts.keys()):
        if open_letters[place] != books.counts.get(place, 0):
            problems.append(f"{place} has {open_letters[place]} open dead letters, counted {books.counts.get(place)}")
    return problems


def check_nothing_overtook(books: FailureBooks) -> list[str]:
    """Behind a record of an aggregate that waits, or is a dead letter that keeps it waiting, everything waits."""
    problems = []
    for source in books.positions:
        first: dict[bytes, int] = {}  # by key, the first record that keeps others waiting
        for record in books.passed(source):
            place = Place(source.agent, source.partition, record.offset)
            if record.key in first and books.fate_of(place) is not Fate.WAITING:
                fate = books.fate_of(place).value
                problems.append(f"{place} of {record.key.decode()} is {fate}, behind {first[record.key]}")
            elif record.key and record.key not in first and books.waits_in_place(place):
                first[record.key] = record.offset
    return problems


# ---- commands of orders: applied or not


class Copy(NamedTuple):
    """A command as it is in the topic, which may hold it several times; `fate` is None where it is not passed yet."""

    record: Record
    fate: Fate | None


def check_applied(books: FailureBooks) -> list[str]:
    """A command took effect, once, if its handler got through with one of its copies; otherwise not at all."""
    caused = Counter(record.body["metadata"]["causationId"] for record in books.world.records(EVENTS))
    marked = {key.decode() for key in books.world.rows("handled-commands")}
    problems = []
    commands = copies_of_commands(books)
    for command_id, copies in commands.items():
        fates = [copy.fate.value if copy.fate is not None else "not passed" for copy in copies]
        is_handled = any(copy.fate in HANDLED for copy in copies)
        if is_handled and not caused[command_id]:
            problems.append(f"command {command_id} is {fates}, but never took effect (lost)")
        if caused[command_id] and not is_handled:
            problems.append(f"command {command_id} is {fates}, but took effect")
        if caused[command_id] > 1:
            problems.append(f"command {command_id} took effect {caused[command_id]} times")
        if (command_id in marked) != (caused[command_id] > 0):
            problems.append(f"command {command_id} is marked as handled wrongly, or not")
    return problems + [f"command {id} is marked as handled, but in no topic" for id in marked - commands.keys()]


def check_order_of_effects(books: FailureBooks) -> list[str]:
    """An order's commands took effect in the order of the topic; only those that were not handled are left out."""
    asked: defaultdict[bytes, list[tuple[int, str]]] = defaultdict(list)
    commands = copies_of_commands(books)
    for command_id, copies in commands.items():
        handled = [copy.record for copy in copies if copy.fate in HANDLED]
        if handled:
            first = min(handled, key=lambda record: record.offset)
            asked[first.key].append((first.offset, command_id))
    happened = defaultdict(list)
    for record in books.world.records(EVENTS):
        cause = record.body["metadata"]["causationId"]
        if cause in commands:  # others follow from what the order's saga was told
            happened[record.key].append(cause)
    problems = []
    for key in sorted(asked.keys() | happened.keys()):
        expected = [command_id for _, command_id in sorted(asked[key])]
        if happened[key] != expected:
            problems.append(f"order {key.decode()}: commands {expected} took effect as {happened[key]}")
    return problems


def copies_of_commands(books: FailureBooks) -> dict[str, list[Copy]]:
    """Commands in the topic of orders by id; what has none is in it only to be a dead letter."""
    found = defaultdict(list)
    for record in books.world.records(COMMANDS):
        command_id = id_in(record)
        if command_id is not None:
            end = books.positions.get(Source(ORDERS_AGENT, COMMANDS, record.partition), 0)
            place = Place(ORDERS_AGENT, record.partition, record.offset)
            found[command_id].append(Copy(record, books.fate_of(place) if record.offset < end else None))
    return dict(found)


def id_in(record: Record) -> str | None:
    """The event id in a record that may be anything."""
    try:
        body = json.loads(record.value or b"")
    except ValueError:
        return None
    found = body.get("eventId") if isinstance(body, dict) else None
    return found if isinstance(found, str) else None


# ---- the end


def check_nothing_is_left(books: FailureBooks) -> list[str]:
    """Nothing waits, no dead letter is open, and what was sent to another partition is there."""
    problems = [f"{entry.place} of {entry.key.decode()} still waits" for entry in books.waiting]
    problems += [
        f"dead letter {letter.id} is still {letter.state}: {letter.row['error_type']}: {letter.row['error']}"
        for letter in books.letters
        if _is_open(letter)
    ]
    commands = copies_of_commands(books)
    for letter in books.letters:
        if letter.is_moved and letter.row["topic"] == COMMANDS:
            copies = commands.get(letter.row["event_id"], [])
            elsewhere = [copy for copy in copies if copy.record.place != _origin(letter)]
            if not any(copy.fate in (*HANDLED, Fate.DISCARDED) for copy in elsewhere):
                problems.append(f"dead letter {letter.id} was sent to another partition, and is not there")
    return problems


def _origin(letter: Letter) -> RecordPlace:
    return letter.row["topic"], letter.partition, letter.row["offset"]


def _is_open(letter: Letter) -> bool:
    return letter.state in ("open", "retrying")


MOMENT_CHECKS: Sequence[Check] = (
    check_places,
    check_lanes,
    check_letters,
    check_nothing_overtook,
    check_applied,
    check_order_of_effects,
)
END_CHECKS: Sequence[Check] = (*MOMENT_CHECKS, check_nothing_is_left)
# Those of `verifier` that compare what one partition writes in its transactions.
SHARED_MOMENT_CHECKS = (check_versions, check_integration_events, check_orders_table, check_history)


def problems_at_any_moment(world: World) -> dict[str, list[str]]:
    """What must not be even while there is more to do, by the name of the check."""
    books = FailureBooks(world)
    found = {check.__name__: check(books) for check in MOMENT_CHECKS}
    found |= {check.__name__: check(world) for check in SHARED_MOMENT_CHECKS}
    return {name: problems for name, problems in found.items() if problems}


def problems_at_the_end(world: World) -> dict[str, list[str]]:
    """What must not be once nothing more will happen."""
    books = FailureBooks(world)
    return {check.__name__: problems for check in END_CHECKS if (problems := check(books))}


def count_failures(world: World) -> Mapping[str, int]:
    """How much of what a run is to bring about came about."""
    books = FailureBooks(world)
    fates: Counter[Fate] = Counter()
    for source in books.positions:
        fates.update(
            books.fate_of(Place(source.agent, source.partition, record.offset)) for record in books.passed(source)
        )
    return {
        "records": fates.total(),
        "letters": len(books.letters),
        "failures_of_letters": sum(letter.failures for letter in books.letters),
        "waiting": fates[Fate.WAITING],
        "open": fates[Fate.OPEN],
        "resolved": fates[Fate.RESOLVED],
        "moved": fates[Fate.MOVED],
        "discarded": fates[Fate.DISCARDED],
    }
