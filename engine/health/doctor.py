"""Doctor: checks of what the system stands on, each with advice for what it finds."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from engine.declare.settings import Settings
from engine.failures.dead_letters import DEAD_LETTER_COUNTS
from engine.health.audits import AUDITS, LAST, UNPROVEN
from engine.health.broker_watch import (
    CLOCK_ADVICE,
    CLOCK_DIFFERENCE_MAX_S,
    NOT_READY_AFTER_S,
    client_advice,
    describe,
    describe_clock,
)
from engine.health.check import Check, some
from engine.health.durability import durability_checks
from engine.health.retention import check_retention
from engine.health.standstill import room_settings, without_room
from engine.installation.examine import check_owner
from engine.installation.ownership import Ownership
from engine.log.ports import Broker, TopicSpec, TransportError
from engine.partition.engine import Engine
from engine.partition.task import PartitionTask
from engine.positions.hanging import GRACE_S
from engine.positions.hanging import describe as fault_of
from engine.positions.settling import KIND as TRANSACTIONS
from engine.store.store import StoreError

BROKER_TIMEOUT_S = 5.0
WORKER_SETTINGS = "worker settings"
FREE_BYTES_MIN = 1 << 30


async def examine(engine: Engine) -> list[Check]:
    """All checks of a running worker."""
    return [
        Check(WORKER_SETTINGS, True, describe_settings(engine.settings)),
        *await check_broker(engine.settings, engine.broker, engine.topic_specs()),
        *check_clients(engine),
        *await check_ownership(engine.ownership, engine.broker),
        *await asyncio.to_thread(check_data_folder, engine.settings),
        check_dead_letters(engine),  # first, as it may find a fault
        check_partitions(engine),
        *check_faults(engine),
        *check_calls(engine),
        check_stalled(engine),
        check_audits(engine),
        check_retention(engine),
    ]


def describe_settings(settings: Settings) -> str:
    """Which installation these settings mean: those who mean the same one say the same."""
    where = f", data in {settings.data_dir.absolute()}" if settings.transport == "embedded" else ""
    return f"{settings.broker}, {settings.partitions} partitions, application {settings.app_id}{where}"


async def check_broker(settings: Settings, broker: Broker, specs: Sequence[TopicSpec]) -> list[Check]:
    """Is the broker there, and has it all topics with the right number of partitions?"""
    try:
        async with asyncio.timeout(BROKER_TIMEOUT_S):
            found = await broker.topics()
    except (TransportError, TimeoutError) as error:
        correct = f"correct {settings.variable('broker')}"
        advice = f"start the broker, or {correct}; the worker goes on by itself when it is there"
        return [Check("broker", False, f"{settings.broker} does not answer: {error or 'no answer in time'}", advice)]
    checks = [Check("broker", True, f"{settings.broker} answers")]
    missing = [spec.name for spec in specs if spec.name not in found]
    different = [
        f"{spec.name} has {found[spec.name]}"
        for spec in specs
        if spec.name in found and found[spec.name] != spec.partitions
    ]
    if missing:
        advice = (
            "restart the worker, which creates them; if one was there before, its records are gone with it: "
            "restore the cluster from a copy first"
        )
        checks.append(Check("topics", False, f"missing: {some(missing)}", advice))
    elif different:
        checks.append(Check("topics", False, some(different), _partitions_advice(settings, specs, found)))
    else:
        checks.append(Check("topics", True, f"{len(specs)} topics with {settings.partitions} partitions each"))
    return checks + await _check_durability(settings, broker, specs)


def _partitions_advice(settings: Settings, specs: Sequence[TopicSpec], found: Mapping[str, int]) -> str:
    """What to do about topics of another size, without losing what is in them."""
    counts = {found[spec.name] for spec in specs if spec.name in found}
    if len(counts) == 1:
        return f"all topics have {counts.pop()}: set {settings.variable('partitions')} to that, and delete nothing"
    return (
        f"all topics need the same number, {settings.partitions} by {settings.variable('partitions')}: delete no "
        'topic, events are nowhere else; see "Changing the number of partitions" in docs/operations.md'
    )


async def _check_durability(settings: Settings, broker: Broker, specs: Sequence[TopicSpec]) -> list[Check]:
    """Does the broker keep what was acknowledged?"""
    try:
        async with asyncio.timeout(BROKER_TIMEOUT_S):
            facts = await broker.facts([spec.name for spec in specs])
    except (TransportError, TimeoutError) as error:
        advice = "ask again when the brokers are less busy"
        return [Check("Kafka settings", True, f"not checked: {error or 'no answer in time'}", advice)]
    return durability_checks(settings, specs, facts) if facts is not None else []


def check_clients(engine: Engine) -> list[Check]:
    """Do the worker's own clients of the log work, and do its clock and the log's agree?"""
    checks = []
    for state in engine.clients():
        is_failing = state.failing_s > NOT_READY_AFTER_S
        last = f"; made anew {state.replaced} times, last failure: {state.reason}" if state.reason else ""
        detail = describe(state) if is_failing else f"the {state.name} works{last}"
        checks.append(
            Check("clients", not is_failing, detail, client_advice(engine.settings.application) if is_failing else None)
        )
    if (ahead_s := engine.broker_watch.clock_ahead_s) is not None:
        is_off = abs(ahead_s) > CLOCK_DIFFERENCE_MAX_S
        detail = describe_clock(ahead_s) if is_off else f"this worker's and the broker's differ by {abs(ahead_s):.1f} s"
        checks.append(Check("clock", not is_off, detail, CLOCK_ADVICE if is_off else None))
    return checks


async def check_transactions(settings: Settings, broker: Broker, specs: Sequence[TopicSpec]) -> list[Check]:
    """Do transactions without markers hold up readers? For a broker without a worker, which would look for them."""
    try:
        async with asyncio.timeout(BROKER_TIMEOUT_S):
            found = await broker.open_transactions({spec.name: spec.partitions for spec in specs})
    except (TransportError, TimeoutError) as error:
        return [Check(TRANSACTIONS, True, f"not checked: {error or 'no answer in time'}", "ask again")]
    before_ms = (time.time() - settings.transaction_timeout - GRACE_S) * 1000
    old = [one for one in found if one.last_timestamp_ms < before_ms]
    if not old:
        return [Check(TRANSACTIONS, True, "none hangs")]
    advice = fault_of(settings, old[0]).advice
    return [Check(TRANSACTIONS, False, some(map(str, old)), advice)]


async def check_ownership(ownership: Ownership, broker: Broker) -> list[Check]:
    """Who owns the topics, and may a worker with these settings work on them?"""
    try:
        async with asyncio.timeout(BROKER_TIMEOUT_S):
            return await check_owner(ownership, broker)
    except (TransportError, TimeoutError) as error:
        return [
            Check("owner", True, f"not checked: {error or 'no answer in time'}", "ask again when the broker answers")
        ]


def check_data_folder(settings: Settings) -> list[Check]:
    """Can the data folder be written, and has it room? Looks at the disk, so call it in a thread."""
    if settings.transport == "memory":
        return [Check("data folder", True, "memory:// keeps nothing")]
    folder = settings.data_dir.absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"written")
        free_bytes = shutil.disk_usage(folder).free
    except OSError as error:
        advice = f"change its permissions, free space, or {settings.application.moving_data}"
        return [Check("data folder", False, f"{folder} cannot be written: {error.strerror}", advice)]
    room = f"{free_bytes / (1 << 30):.1f} GiB free"
    if free_bytes < FREE_BYTES_MIN:
        advice = f"free space, or {settings.application.moving_data}"
        return [Check("data folder", True, f"{folder} can be written"), Check("free space", False, room, advice)]
    return [Check("data folder", True, f"{folder} can be written"), Check("free space", True, room)]


def check_partitions(engine: Engine) -> Check:
    """Has the worker restored what it owns?"""
    if engine.fatal is not None:
        return Check("partitions", False, engine.fatal, "do what the message says and start the worker again")
    running = [number for number, task in engine.tasks.items() if task.life.is_running()]
    detail = (
        f"{len(running)} of {len(engine.numbers)} owned partitions are restored ({engine.settings.partitions} in all)"
    )
    if engine.is_ready():
        return Check("partitions", True, detail)
    return Check(
        "partitions", False, detail, "wait; if it stays so, the worker's log says what keeps it from restoring"
    )


def check_faults(engine: Engine) -> list[Check]:
    """Is something missing or damaged, or does it stand still until somebody decides?"""
    faults = engine.faults.open()
    if not faults:
        return [Check("faults", True, "nothing is known to be missing, damaged or waiting for a decision")]
    return [Check(fault.kind, False, fault.detail, fault.advice) for fault in faults]


def check_calls(engine: Engine) -> list[Check]:
    """Do those answer that agents call?"""
    pauses = engine.pauses()
    if not pauses:
        return [Check("outside calls", True, "no agent waits for somebody outside")]
    advice = (
        f"see that what it calls is up, and check the address{engine.settings.application.addresses}; "
        "the worker asks again by itself, and goes on when there is an answer"
    )
    return [
        Check("outside calls", False, f"{pause.agent} is paused since {pause.since:%F %T}Z: {pause.reason}", advice)
        for pause in pauses
    ]


def check_dead_letters(engine: Engine) -> Check:
    """Are there records that somebody has to decide about, in the partitions of this worker?"""
    counts: Counter[str] = Counter()
    try:
        for task in _readable(engine):
            counts.update({topic: row.count for topic, row in task.scan(DEAD_LETTER_COUNTS)})
    except StoreError as error:
        return Check("dead letters", False, f"cannot be counted: {error}", "see the faults")
    open_ones = {topic: count for topic, count in sorted(counts.items()) if count}
    if not open_ones:
        return Check("dead letters", True, "none is open in the partitions of this worker")
    detail = ", ".join(f"{topic} {count}" for topic, count in open_ones.items())
    command = engine.settings.application.command
    advice = (
        f"see {command('dead-letters groups')}, mend the cause, then {command('dead-letters retry')} them; "
        "`discard` only what nobody needs"
    )
    return Check("dead letters", False, f"open ones by topic: {detail}", advice)


def check_stalled(engine: Engine) -> Check:
    """Do topics stand still because no more records may wait?"""
    sources = sorted({source for task in _readable(engine) for source in without_room(task)})
    if not sources:
        return Check("waiting records", True, "there is room for more")
    detail = ", ".join(f"{topic} for {agent}" for agent, topic in sources)
    advice = (
        "retry what they wait for (GET /aggregates/waiting names it), or discard it if nobody needs it, "
        f"or raise {room_settings(engine.settings)}"
    )
    return Check("waiting records", False, f"no room for more records to wait, so these stand still: {detail}", advice)


def check_audits(engine: Engine) -> Check:
    """How did the last audits end? Differences are a fault, which has a line of its own."""
    found = [(task.number, task.read(AUDITS, LAST)) for task in _readable(engine)]
    last = [(number, audit) for number, audit in found if audit is not None]
    if not last:
        return Check("last audit", True, "none was made yet of the partitions of this worker")
    detail = "; ".join(
        f"partition {number} {audit.outcome} at {datetime.fromtimestamp(audit.ended_ms / 1000, UTC):%F %T}Z, "
        f"{audit.records:,} events and {audit.rows:,} rows compared"
        for number, audit in sorted(last)
    )
    if any(audit.outcome == UNPROVEN for _, audit in last):
        return Check(
            "last audit",
            True,
            detail,
            f"{engine.settings.application.command('audit')} says what the log can no longer tell",
        )
    return Check("last audit", True, detail)


def _readable(engine: Engine) -> Sequence[PartitionTask]:
    return [task for task in engine.tasks.values() if task.life.is_restored()]
