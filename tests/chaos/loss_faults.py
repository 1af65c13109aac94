"""Faults that lose records: they are removed ahead of their readers, or their topic is made anew under the workers.

Each waits until the workers have said what is lost, follows their advice, and waits until nothing is said any more.
What was lost and what was said of it is for `verify_losses` to compare.
"""

from __future__ import annotations

import asyncio
import random
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import MessageSizeTooLargeError

from engine.log.embedded.log import Log, RocksStorage
from tests.chaos.faults import (
    BROKER,
    BROKER_STOP,
    FREEZE,
    KILL,
    KILL_AND_WIPE,
    RECREATE,
    REFUSE,
    REMOVE,
    ROLLING,
    SKEW,
    TRUNCATE,
    Worker,
)
from tests.chaos.log_faults import COMMANDS, Do, NotMended
from tests.chaos.named_losses import Listener, follow
from tests.chaos.verifier import CONSUMERS, REQUESTS
from tests.chaos.world import DOCTOR, HEALTH, PLACES, EmbeddedSource, KafkaSource, Loss, Named, Record, World
from tests.lost_records import admin_of, configure, make_anew, remove_from_log, remove_records, settings_of

IDLE_WORKER: Final = ("-m", "tests.chaos.idle_worker")
TOPICS: Final = (COMMANDS, REQUESTS)
STANDSTILL_S: Final = (0.5, 1.5)
STILL_S: Final = 0.5
REFUSED: Final = bytes(200)  # as small as no command is
LOOK_S: Final = 0.3
PATIENCE_S: Final = 60.0


class LossFaults(ABC):
    """Loses records of one log, and sees to it that the workers go on; `losses` are those so far."""

    def __init__(self, team: Sequence[Worker]) -> None:
        self.losses: list[Loss] = []
        self._team = team

    def by_kind(self) -> Mapping[str, Do]:
        """What is done for each kind of fault."""
        return {REMOVE: self.remove, RECREATE: self.recreate}

    @abstractmethod
    async def remove(self, rnd: random.Random) -> None:
        """Remove commands that no agent has read."""

    @abstractmethod
    async def recreate(self, rnd: random.Random) -> None:
        """Delete a topic and make it anew."""

    @abstractmethod
    async def _passed(self, loss: Loss) -> bool:
        """Whether the agents are behind what is gone, so that nothing has to be said."""

    async def _see_through(self, loss: Loss, listener: Listener, numbers: Collection[int]) -> None:
        """Wait until what is lost in these partitions is named, follow the advice, and wait until all is well."""
        deadline = time.monotonic() + PATIENCE_S
        accepted: set[int] = set()
        failures: list[str] = []
        self.losses.append(loss)
        while True:
            said = await listener.listen()
            for place in PLACES:
                loss.said[place].update(said.named[place])
            is_quiet = not said.silent and not said.named[HEALTH]
            if is_quiet and (accepted.issuperset(numbers) or (not loss.named() and await self._passed(loss))):
                return
            if time.monotonic() > deadline:
                raise NotMended(
                    f"{loss.topic} {sorted(numbers)}: said is {loss.said}, silent {said.silent}, {failures}"
                )
            if said.agree() and loss.said[DOCTOR] == loss.said[HEALTH]:
                failures = [failure for failure in await self._follow(said.advice, accepted) if failure is not None]
            await asyncio.sleep(LOOK_S)

    async def _follow(self, advice: Mapping[int, str], accepted: set[int]) -> Sequence[str | None]:
        """Do what is advised for each partition; what went wrong, None for what went well and is `accepted` now."""
        found = await asyncio.gather(*(follow(command, self._team[0].url) for command in advice.values()))
        accepted.update(number for number, failure in zip(advice, found, strict=True) if failure is None)
        return found


class LossesOnKafka(LossFaults):
    """Loses records of a Kafka; `source` is what `world` is read from."""

    def __init__(self, team: Sequence[Worker], bootstrap: str, world: World, source: KafkaSource) -> None:
        super().__init__(team)
        self.losses = world.losses
        self._bootstrap = bootstrap
        self._world = world
        self._source = source

    async def remove(self, rnd: random.Random) -> None:
        """See LossFaults. The workers are dead or frozen meanwhile, clients go on; a frozen one may have read ahead."""
        listener = Listener(self._team, COMMANDS)
        async with admin_of(bootstrap_servers=self._bootstrap) as admin, self._standstill(rnd, rnd.random() < 0.5):
            number, before = await self._unread(rnd)
            await remove_records(admin, COMMANDS, number, before)
        gone = [r for r in self._world.remaining(COMMANDS) if r.partition == number and r.offset < before]
        await self._see_through(Loss(COMMANDS, gone, {number: before}, unsaid()), listener, {number})

    async def recreate(self, rnd: random.Random) -> None:
        """See LossFaults. Nothing can be written before, so that nothing is lost that was not seen."""
        topic, standstill = rnd.choice(TOPICS), rnd.random() < 0.7
        listener = Listener(self._team, topic)
        async with admin_of(bootstrap_servers=self._bootstrap) as admin:
            settings = await settings_of(admin, topic)
            async with self._standstill(rnd, frozen=True) if standstill else _nothing():
                await configure(admin, topic, settings | {"max.message.bytes": f"{len(REFUSED) // 2}"})
                await self._until_refused(topic)
                await self._until_still(topic)
                gone = self._world.remaining(topic)
                await make_anew(admin, topic, settings)
                await self._source.start_over(topic)
        await self._see_through(Loss(topic, gone, {}, unsaid()), listener, self._world.partitions())

    async def _passed(self, loss: Loss) -> bool:
        await self._world.update(self._source)
        positions = self._world.positions()
        agent = CONSUMERS[loss.topic]
        return bool(loss.begins_at) and all(
            positions.get((loss.topic, agent, number), 0) >= begins_at for number, begins_at in loss.begins_at.items()
        )

    @asynccontextmanager
    async def _standstill(self, rnd: random.Random, frozen: bool) -> AsyncIterator[None]:
        """Let no worker run meanwhile, and clients write for a moment."""
        for worker in self._team:
            (worker.freeze if frozen else worker.kill)()
        try:
            await asyncio.sleep(rnd.uniform(*STANDSTILL_S))
            yield
        finally:
            for worker in self._team:
                (worker.thaw if frozen else worker.start)()

    async def _unread(self, rnd: random.Random) -> tuple[int, int]:
        """A partition of commands, and an offset with unread commands before it."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            await self._world.update(self._source)
            if unread := unread_of(self._world):
                return choose(rnd, unread)
            if time.monotonic() > deadline:
                raise NotMended("there is no unread command that could be removed")
            await asyncio.sleep(LOOK_S)

    async def _until_refused(self, topic: str) -> None:
        """Write into every partition until the broker refuses it, and take back what it does not refuse."""
        probe = AIOKafkaProducer(bootstrap_servers=self._bootstrap, transactional_id="chaos-probe")
        await probe.start()
        try:
            numbers, deadline = list(self._world.partitions()), time.monotonic() + PATIENCE_S
            while numbers and time.monotonic() < deadline:
                await probe.begin_transaction()
                try:
                    await probe.send_and_wait(topic, REFUSED, partition=numbers[-1])
                except MessageSizeTooLargeError:
                    numbers.pop()
                await probe.abort_transaction()
        finally:
            await probe.stop()
        if numbers:
            raise NotMended(f"{topic}/{numbers} takes what it was told to refuse")

    async def _until_still(self, topic: str) -> None:
        """Read on until nobody writes into a topic any more, and no transaction of it is open."""
        consumer = AIOKafkaConsumer(bootstrap_servers=self._bootstrap, group_id=None)
        await consumer.start()
        try:
            deadline, since, before = time.monotonic() + PATIENCE_S, time.monotonic(), dict[int, int]()
            while time.monotonic() - since < STILL_S:
                tps = [TopicPartition(topic, number) for number in self._world.partitions()]
                ends = {tp.partition: end for tp, end in (await consumer.end_offsets(tps)).items()}
                await self._world.update(self._source)
                if ends != before or any(self._world.ends[topic, number] != end for number, end in ends.items()):
                    before, since = ends, time.monotonic()
                if time.monotonic() > deadline:
                    raise NotMended(f"{topic} is written to all the time: {ends}")
                await asyncio.sleep(LOOK_S / 3)
        finally:
            await consumer.stop()


class LossesOnEmbeddedLog(LossFaults):
    """Loses records of the log of one worker, while it does not run; it never removes unread ones by itself."""

    def __init__(self, worker: Worker) -> None:
        super().__init__([worker])
        self._worker = worker

    async def remove(self, rnd: random.Random) -> None:
        """See LossFaults."""
        listener = Listener(self._team, COMMANDS)
        world = await self._world_with_unread(rnd)
        number, before = choose(rnd, unread_of(world))
        gone = [r for r in world.records(COMMANDS) if r.partition == number and r.offset < before]
        self._change(lambda log: remove_from_log(log, COMMANDS, number, before))
        self._worker.start()
        await self._see_through(Loss(COMMANDS, gone, {number: before}, unsaid()), listener, {number})

    async def recreate(self, rnd: random.Random) -> None:
        """See LossFaults. The worker itself makes the topic anew."""
        listener = Listener(self._team, COMMANDS)
        world = await self._world_with_unread(rnd)
        self._change(lambda log: log.delete_topic(COMMANDS))
        self._worker.start()
        loss = Loss(COMMANDS, world.records(COMMANDS), {}, unsaid())
        await self._see_through(loss, listener, world.partitions())

    async def _passed(self, loss: Loss) -> bool:
        return False

    async def _world_with_unread(self, rnd: random.Random) -> World:
        """Let the worker take commands in and handle none for a moment; what is in the log after that."""
        while True:
            self._worker.kill()
            self._worker.start(IDLE_WORKER)
            await self._worker.ready()
            await asyncio.sleep(rnd.uniform(*STANDSTILL_S))
            self._worker.kill()
            world = await World.read(EmbeddedSource(self._worker.data_dir), ())
            if unread_of(world):
                return world

    def _change(self, change: Callable[[Log], None]) -> None:
        log = Log(RocksStorage(self._worker.data_dir / "log"))
        try:
            change(log)
        finally:
            log.close()


def losses_for_minutes(seed: int, minutes: float) -> Iterable[str]:
    """Faults that lose records until the time is over, among others of all kinds."""
    rnd, until = random.Random(seed), time.monotonic() + minutes * 60
    while time.monotonic() < until:
        kinds = (REMOVE, RECREATE, KILL, KILL_AND_WIPE, FREEZE, BROKER, BROKER_STOP, ROLLING, SKEW, TRUNCATE, REFUSE)
        yield rnd.choices(kinds, (25, 20, 15, 10, 10, 4, 4, 4, 4, 2, 2))[0]


def unsaid() -> dict[str, set[Named]]:
    """Nothing was said yet."""
    return {place: set() for place in PLACES}


def unread_of(world: World) -> Mapping[int, Sequence[Record]]:
    """Commands that their agent has not passed, by partition."""
    positions = world.positions()
    unread: dict[int, list[Record]] = {}
    for record in world.remaining(COMMANDS):
        if record.offset >= positions.get((COMMANDS, CONSUMERS[COMMANDS], record.partition), 0):
            unread.setdefault(record.partition, []).append(record)
    return unread


def choose(rnd: random.Random, unread: Mapping[int, Sequence[Record]]) -> tuple[int, int]:
    """A partition, and an offset behind some of its unread records."""
    number = rnd.choice(sorted(unread))
    return number, rnd.choice(unread[number]).offset + 1


@asynccontextmanager
async def _nothing() -> AsyncIterator[None]:
    yield
