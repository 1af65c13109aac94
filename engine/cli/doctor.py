"""The command `doctor`: is everything there that a worker needs, and what to do about what is not."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import click
import msgspec
from dotenv import dotenv_values

from engine.cli.client import Refused, WorkerClient, client_for
from engine.cli.console import Failure, echo, example, quiet_logging, run_until_interrupted, settings_from
from engine.cli.program import Command, program
from engine.cli.records import open_broker
from engine.declare.settings import ENV_FILE, Settings
from engine.web.binding import binding_problem

if TYPE_CHECKING:
    from engine.health.check import Check


@click.command(cls=Command, epilog=example("$program doctor", "$broker=kafka://localhost:9092 $program doctor"))
@click.option("--url", help="the worker's address; by default what the settings say")
def doctor(url: str | None) -> None:
    """Check settings, data folder, broker, topics and worker, and say what to do about what is found.

    Works with and without a running worker; one that runs is asked. Exits with 1 when something is wrong.
    """
    quiet_logging()
    checks = run_until_interrupted(_examine(settings_from(), url))
    if checks is None:
        raise Failure("interrupted")
    for check in checks:
        for line in lines_of(check):
            echo(line)
    problems = sum(not check.ok for check in checks)
    echo("Everything is fine." if not problems else f"To be solved: {problems}.")
    if problems:
        raise SystemExit(1)


def lines_of(check: Check) -> list[str]:
    """A check for people: what was found, and what to do about it."""
    mark = "PROBLEM" if not check.ok else "note" if check.advice else "ok"
    return [f"{mark:<8} {check.check}: {check.detail}", *([f"         -> {check.advice}"] if check.advice else [])]


async def _examine(settings: Settings, url: str | None) -> list[Check]:
    from engine.health.check import Check
    from engine.health.doctor import check_data_folder, describe_settings

    checks = [Check("settings", True, describe_settings(settings))]
    checks += unknown_variables(type(settings), given_names())
    async with client_for(settings, url) as client:
        if await client.is_up():
            found = await _ask_worker(client)
            own = await _compare(settings, client.url, found) if url is None else []
            return checks + own + found
    if url is not None:
        return [*checks, Check("worker", False, f"no worker answers at {url}", "start it, or correct --url")]
    checks += [check_address(settings), *check_data_folder(settings)]
    return checks + await _examine_broker(settings)


async def _compare(settings: Settings, url: str, found: Sequence[Check]) -> list[Check]:
    """Is the worker that answers the one of these settings, and does their broker answer here as well?"""
    from engine.health.check import Check
    from engine.health.doctor import WORKER_SETTINGS, describe_settings

    checks = []
    of_worker = next((check.detail for check in found if check.check == WORKER_SETTINGS), None)
    if of_worker not in (None, describe_settings(settings)):
        detail = f"the worker at {url} has others: {of_worker}; what it says is about its own installation"
        port = settings.variable("web_port")
        advice = f"give this command the settings of that worker, or set {port} to the port of yours"
        checks.append(Check("settings", False, detail, advice))
    if settings.transport == "kafka":
        try:
            async with open_broker(settings) as broker:
                await broker.topics()
        except Failure as failure:
            advice = f"correct {settings.variable('broker')}, or start it"
            checks.append(Check("broker", False, f"from here: {failure.message}", advice))
    return checks


def given_names() -> set[str]:
    """The names that settings are looked for among: variables, and what the `.env` file of this folder has."""
    return {*os.environ, *dotenv_values(ENV_FILE)}


def unknown_variables(settings: type[Settings], environment: Iterable[str]) -> list[Check]:
    """Names that look like settings, but are none: most likely misspelt."""
    from engine.health.check import Check

    known = {settings.variable(name) for name in settings.model_fields} | settings.application.foreign_variables
    prefix = settings.variable("")
    unknown = sorted(name for name in environment if name.upper().startswith(prefix) and name.upper() not in known)
    return [Check("settings", True, f"{name} is no setting and has no effect", "is it misspelt?") for name in unknown]


def check_address(settings: Settings) -> Check:
    """No worker answers: could one listen there?"""
    from engine.health.check import Check

    if (problem := binding_problem(settings, settings.web_host)) is not None:
        detail, _, advice = problem.partition(". ")
        return Check("worker", False, f"none answers, and {detail}", advice)
    where = f"{settings.web_host}:{settings.web_port}"
    with socket.socket(socket.AF_INET6 if ":" in settings.web_host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.web_host, settings.web_port))
        except OSError as error:
            port, host = settings.variable("web_port"), settings.variable("web_host")
            advice = f"set {port} to a free port and {host} to an address of this machine"
            return Check("worker", False, f"none answers, and none could listen on {where}: {error.strerror}", advice)
    return Check("worker", True, f"none runs here; {where} is free for one")


async def _ask_worker(client: WorkerClient) -> list[Check]:
    """What the worker says about itself and what it stands on."""
    from engine.health.check import Check

    try:
        found = msgspec.convert(await client.get("/doctor"), list[Check])
    except Refused as refused:
        detail = f"{client.url} cannot examine itself: {refused.problem.get('detail')}"
        return [Check("worker", False, detail, "see the worker's log")]
    return [Check("worker", True, f"one answers at {client.url}"), *found]


async def _examine_broker(settings: Settings) -> list[Check]:
    """Open the broker without a worker and compare the topics that are there with what the application needs."""
    from engine.health.check import Check
    from engine.health.doctor import check_broker, check_ownership, check_transactions

    if settings.transport == "memory":
        return []
    if settings.transport == "embedded" and not (settings.data_dir / "log").is_dir():
        return [Check("broker", True, "no embedded log yet; the first start makes it")]
    engine = program().create(settings).engine
    specs = engine.topic_specs()
    try:
        async with open_broker(settings) as broker:
            ownership = engine.ownership.of(broker)
            found = await broker.topics()
            there = [spec for spec in specs if spec.name in found]
            checks = [
                check for check in await check_broker(settings, broker, there) if there or check.check != "topics"
            ]
            checks += await check_ownership(ownership, broker)
            await ownership.stop()
            if settings.transport == "kafka":
                checks += await check_transactions(settings, broker, there)
    except Failure as failure:
        return [Check("broker", False, failure.message)]
    if len(there) < len(specs):
        checks.append(Check("topics", True, f"{len(specs) - len(there)} are missing; the next start makes them"))
    return checks
