"""What workers say is lost, read where people read it: `/healthz`, the doctor and the logs."""

from __future__ import annotations

import asyncio
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import aiohttp

from tests.chaos.faults import ROOT, Worker
from tests.chaos.world import DOCTOR, HEALTH, LOG, PLACES, Named

ANSWER_TIMEOUT_S: Final = 3.0
COMMAND_TIMEOUT_S: Final = 60.0
DONE: Final = "there is no loss to accept"  # an earlier command was done, and its answer was lost

_PLACE = r"([\w.-]+)/(\d+): "
_REMOVED = re.compile(
    _PLACE + r"(?:1 record, offset (\d+), was|(\d+) records, offsets (\d+) to (\d+), were) "
    r"removed before ([\w.-]+) had read (?:it|them)"
)
_MADE_ANEW = re.compile(
    _PLACE + r"the topic was deleted and made anew; what ([\w.-]+) had not read of the one before is gone, "
    r"and its position (\d+) says nothing about the new one"
)
_COMMAND = re.compile(r"`(orders accept-loss (\S+) (\d+) [^`]+)`")


class Misnamed(Exception):
    """A sentence contradicts itself."""


def named_in(text: str) -> Iterator[Named]:
    """Every loss that is named in a text; raises Misnamed."""
    for topic, number, only, count, first, last, agent in _REMOVED.findall(text):
        if only:
            yield Named(topic, int(number), agent, int(only), int(only) + 1)
            continue
        if int(count) != int(last) - int(first) + 1:
            raise Misnamed(f"{topic}/{number}: {count} records, offsets {first} to {last}")
        yield Named(topic, int(number), agent, int(first), int(last) + 1)
    for topic, number, agent, position in _MADE_ANEW.findall(text):
        yield Named(topic, int(number), agent, int(position), None)


@dataclass
class Said:
    """What all workers say at one time of the losses of one topic, by where they say it.

    `advice` are the commands that they advise, by partition; workers that did not answer are `silent`.
    """

    named: dict[str, set[Named]] = field(default_factory=lambda: {place: set() for place in PLACES})
    advice: dict[int, str] = field(default_factory=dict)
    silent: list[str] = field(default_factory=list)

    def agree(self) -> bool:
        """Whether what `/healthz` says is in the doctor and in the log as well."""
        return all(self.named[HEALTH] <= self.named[place] for place in PLACES)

    def note(self, place: str, topic: str, text: str) -> None:
        """Take in a text."""
        self.named[place] |= {named for named in named_in(text) if named.topic == topic}
        if place == HEALTH:
            self.advice |= {int(number): command for command, of, number in _COMMAND.findall(text) if of == topic}


class Listener:
    """Hears what the workers say of the losses of a topic from now on."""

    def __init__(self, team: Sequence[Worker], topic: str) -> None:
        self._team = team
        self._topic = topic
        self._heard = {worker.name: worker.log_path.stat().st_size for worker in team}

    async def listen(self) -> Said:
        """What is said now; a worker that does not answer is silent."""
        said = Said()
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=ANSWER_TIMEOUT_S)) as http:
            for worker in self._team:
                try:
                    await self._ask(http, worker, said)
                except (aiohttp.ClientError, TimeoutError, OSError):
                    said.silent.append(worker.name)
        for worker in self._team:
            with worker.log_path.open("rb") as log:
                log.seek(self._heard[worker.name])
                said.note(LOG, self._topic, log.read().decode(errors="replace"))
        return said

    async def _ask(self, http: aiohttp.ClientSession, worker: Worker, said: Said) -> None:
        async with http.get(f"{worker.url}/healthz") as answer:
            if answer.status == 503:
                said.note(HEALTH, self._topic, (await answer.json(content_type=None))["detail"])
        async with http.get(f"{worker.url}/doctor") as answer:
            if answer.status != 200:
                said.silent.append(worker.name)
                return
            checks: Sequence[Mapping[str, str]] = await answer.json()
            said.note(DOCTOR, self._topic, "\n".join(check["detail"] for check in checks if not check["ok"]))


async def follow(command: str, url: str) -> str | None:
    """Do what a fault advises; how it failed, None when it did not."""
    arguments = [*shlex.split(command.replace("...", "chaos"))[1:], "--by", "chaos", "--url", url]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "cli", *arguments),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), COMMAND_TIMEOUT_S)
    except TimeoutError:
        process.kill()
        await process.wait()
        return f"{command}: no answer in {COMMAND_TIMEOUT_S:.0f} s"
    text = output.decode(errors="replace")
    return None if process.returncode == 0 or DONE in text else f"{command}: {text}"
