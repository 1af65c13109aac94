"""Can Kafka lose or refuse what was acknowledged? Its replicas and settings compared with what the system relies on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from engine.declare.settings import Settings
from engine.health.check import Check, some
from engine.log.ports import LogFacts, TopicFacts, TopicSpec

FOR_EVER: Final = -1
GUIDE: Final = 'see "Kafka without loss" in docs/operations.md'


def durability_checks(settings: Settings, specs: Sequence[TopicSpec], facts: LogFacts) -> list[Check]:
    """Copies, elections, retention, sizes and transactions; each problem names the topics and what to do."""
    if not facts.has_controller:
        detail = "none answers, so no topic or broker can change, and what brokers say of themselves may be old"
        advice = (
            "bring brokers and controllers back until a majority of the controllers is there; workers wait meanwhile"
        )
        return [Check("controllers", False, detail, advice)]
    there = {spec: facts.topics[spec.name] for spec in specs if spec.name in facts.topics}
    readable = {spec: topic for spec, topic in there.items() if topic.settings}
    checks = [*_copies(settings, facts, there)]
    if len(readable) < len(there) or not facts.settings:
        advice = f"give this client the right DescribeConfigs on topics and cluster, or look yourself: {GUIDE}"
        checks.append(Check("Kafka settings", True, "some cannot be read, and are not checked", advice))
    if readable:  # of no topic nothing is known, so nothing is said to be in order
        checks += [_elections(readable), _retention(settings, readable), _record_size(readable), *_stamps(readable)]
    return [*checks, *_transactions(settings, facts.settings), *_mistyped(facts.settings)]


def _copies(settings: Settings, facts: LogFacts, there: Mapping[TopicSpec, TopicFacts]) -> Iterator[Check]:
    """How many brokers have a record, and how many have to before it is acknowledged."""
    topics = {spec.name: topic for spec, topic in there.items()}
    fewest = min((topic.replicas for topic in topics.values()), default=0)
    problems = [
        (
            _named(topics, lambda topic: topic.replicas < settings.replication),
            f"have fewer copies than {settings.variable('replication')}={settings.replication}",
            "add replicas with kafka-reassign-partitions.sh: it is used only when a topic is created",
        ),
        (
            _named(topics, lambda topic: topic.replicas > 1 and _number(topic, "min.insync.replicas", 2) < 2),
            "acknowledge a record that a single broker has",
            "set min.insync.replicas=2 for them with kafka-configs.sh",
        ),
        (
            _named(topics, lambda topic: topic.in_sync < _number(topic, "min.insync.replicas", 1)),
            "take no records: too few of their replicas are in sync",
            "bring the missing brokers back; the workers go on by themselves",
        ),
        (
            [name for name, topic in facts.topics.items() if name.startswith("__") and topic.replicas < fewest],
            f"have fewer copies than the application's topics, which have {fewest}",
            "add replicas with kafka-reassign-partitions.sh, or transactions end with the broker that has them",
        ),
    ]
    found = [Check("copies", False, f"{some(names)} {what}", f"{advice}; {GUIDE}") for names, what, advice in problems
             if names]  # fmt: skip
    yield from found
    if not found and there:
        yield _copies_in_order(settings, facts, topics, fewest)


def _copies_in_order(settings: Settings, facts: LogFacts, topics: Mapping[str, TopicFacts], fewest: int) -> Check:
    if fewest == 1:
        advice = f"three brokers and {settings.variable('replication')}=3 before the first start keep them; {GUIDE}"
        return Check("copies", True, "one of each record: with the disk of a broker its records are lost", advice)
    if behind := _named(topics, lambda topic: topic.in_sync < topic.replicas):
        advice = "a broker is down, or catching up: look at the brokers before another one fails"
        return Check("copies", True, f"{some(behind)} have replicas that are not in sync", advice)
    return Check("copies", True, f"{fewest} of each record, on {facts.brokers} brokers")


def _elections(readable: Mapping[TopicSpec, TopicFacts]) -> Check:
    unclean = [spec.name for spec, topic in readable.items() if topic.settings.get(_UNCLEAN) == "true"]
    if unclean:
        detail = f"{some(unclean)} may be led by a replica that has missed records, which are lost then"
        return Check("elections", False, detail, f"set {_UNCLEAN}=false for them with kafka-configs.sh; {GUIDE}")
    return Check("elections", True, "only replicas that have all records may lead")


_UNCLEAN: Final = "unclean.leader.election.enable"


def _retention(settings: Settings, readable: Mapping[TopicSpec, TopicFacts]) -> Check:
    """Does every topic keep what it has to, for as long as it has to?"""
    losing = [
        f"{spec.name} ({reason})"
        for spec, topic in readable.items()
        if (reason := _loses(settings, spec, topic)) is not None
    ]
    if losing:
        return Check("retention", False, f"too little is kept by {some(losing)}", _retention_advice(settings, readable))
    return Check("retention", True, "every topic keeps its records for as long as it has to")


def _retention_advice(settings: Settings, readable: Mapping[TopicSpec, TopicFacts]) -> str:
    """Settings to give, all of a topic at once: with the policy alone Kafka may delete before the rest is set."""
    topics: dict[str, list[str]] = {}
    for spec, topic in readable.items():
        if _loses(settings, spec, topic) is not None:
            topics.setdefault(_kept(settings, spec), []).append(spec.name)
    wanted = "; ".join(f"{kept} to {some(names)}" for kept, names in topics.items())
    return (
        f"give, with one kafka-configs.sh --alter --add-config for each topic, {wanted}: "
        f"one setting after the other may delete records in between; {GUIDE}"
    )


def _kept(settings: Settings, spec: TopicSpec) -> str:
    """Settings with which a topic keeps what it has to."""
    if spec.compacted:
        return f"cleanup.policy=compact,delete.retention.ms={int(settings.delete_retention * 1000)}"
    kept_ms = FOR_EVER if spec.retention_ms is None else spec.retention_ms
    return f"cleanup.policy=delete,retention.ms={kept_ms},retention.bytes=-1"


def _loses(settings: Settings, spec: TopicSpec, topic: TopicFacts) -> str | None:
    """The setting by which a topic forgets too much, None where there is none."""
    policy = topic.settings.get("cleanup.policy", "")
    wanted_policy = "compact" if spec.compacted else "delete"
    if policy != wanted_policy:
        return f"cleanup.policy={policy}, not {wanted_policy}"
    if spec.compacted:
        kept_ms, wanted_ms = _number(topic, "delete.retention.ms", 0), int(settings.delete_retention * 1000)
        return f"delete.retention.ms={kept_ms}, not {wanted_ms}" if kept_ms < wanted_ms else None
    if _number(topic, "retention.bytes", FOR_EVER) != FOR_EVER:
        return f"retention.bytes={topic.settings['retention.bytes']}, not -1"
    kept_ms, wanted_ms = _number(topic, "retention.ms", FOR_EVER), spec.retention_ms or FOR_EVER
    is_enough = kept_ms == FOR_EVER or (wanted_ms != FOR_EVER and kept_ms >= wanted_ms)
    return None if is_enough else f"retention.ms={kept_ms}, not {wanted_ms}"


def _stamps(readable: Mapping[TopicSpec, TopicFacts]) -> Iterator[Check]:
    """Does a producer's clock say how old a record is, where Kafka removes old ones?"""
    of_clients = [
        spec.name
        for spec, topic in readable.items()
        if spec.retention_ms is not None and topic.settings.get(_STAMP, _BROKERS_CLOCK) != _BROKERS_CLOCK
    ]
    if of_clients:
        detail = f"{some(of_clients)} go by the clocks of their producers: one that is days behind loses its records"
        advice = (
            f"set {_STAMP}={_BROKERS_CLOCK} for them with kafka-configs.sh; records that are there stay as they are"
        )
        yield Check("timestamps", True, detail, advice)


_STAMP: Final = "message.timestamp.type"
_BROKERS_CLOCK: Final = "LogAppendTime"


def _record_size(readable: Mapping[TopicSpec, TopicFacts]) -> Check:
    small = [spec.name for spec, topic in readable.items()
             if _number(topic, "max.message.bytes", spec.record_bytes_max) < spec.record_bytes_max]  # fmt: skip
    if small:
        detail = f"{some(small)} refuse records that the system may write"
        advice = f"set max.message.bytes={max(spec.record_bytes_max for spec in readable)} or more for them; {GUIDE}"
        return Check("record size", False, detail, advice)
    return Check("record size", True, "every topic takes the largest record")


def _transactions(settings: Settings, of_broker: Mapping[str, str]) -> Iterator[Check]:
    longest_ms = of_broker.get("transaction.max.timeout.ms")
    if longest_ms is None:
        return
    if int(longest_ms) < settings.transaction_timeout * 1000:
        setting = settings.variable("transaction_timeout")
        detail = f"the brokers allow {longest_ms} ms, {setting} is {settings.transaction_timeout} s"
        advice = f"set {setting} lower, or transaction.max.timeout.ms of the brokers higher"
        yield Check("transactions", False, detail, advice)
    else:
        yield Check("transactions", True, f"may take {settings.transaction_timeout:.0f} s")


def _mistyped(of_broker: Mapping[str, str]) -> Iterator[Check]:
    if of_broker.get("auto.create.topics.enable") == "true":
        detail = "the brokers make a topic of any name that somebody asks for"
        advice = f"set auto.create.topics.enable=false: records of mistyped names are read by nobody; {GUIDE}"
        yield Check("new topics", True, detail, advice)


def _named(topics: Mapping[str, TopicFacts], is_wrong: Callable[[TopicFacts], bool]) -> list[str]:
    return [name for name, topic in topics.items() if is_wrong(topic)]


def _number(topic: TopicFacts, name: str, otherwise: int) -> int:
    return int(topic.settings.get(name, otherwise))
