"""Commands of `faust -A` that differ from Faust's own: those that cannot be honoured here say what to use instead.

Faust registers a command under the name of its class, in place of the one that had the name.
"""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar, Final, NoReturn, cast

import click
from faust.cli.base import AppCommand
from faust.cli.send import send as faust_send
from faust.cli.worker import worker as faust_worker

from engine.declare.settings import Settings
from engine.log.embedded.errors import LogLocked
from engine.log.ports import TransportError

DEFAULT_DATADIR: Final = "{conf.name}-data"  # what Faust has when nobody says anything


def refuse_datadir(settings: type[Settings]) -> None:
    """Raise click.UsageError when Faust was given a data folder, which it does not use here."""
    context = click.get_current_context(silent=True)
    given = context and context.find_root().params.get("datadir")
    if given not in (None, DEFAULT_DATADIR):
        variable = settings.variable("data_dir")
        raise click.UsageError(f"--datadir has no effect here; set {variable} to the folder of the data instead")


def _settings_of(command: AppCommand) -> Settings:
    return cast(Settings, cast(Any, command.app).engine.settings)


class worker(faust_worker):
    """Start a worker: all agents, all tables and the web view."""

    def _banner_data(self, worker: Any) -> Any:
        """The banner with what is true here: the broker, the stores and the data folder of the settings."""
        settings = _settings_of(self)
        in_memory = settings.transport == "memory"
        here = {
            "transport": settings.broker,
            "store": "rocksdb, removed at the end" if in_memory else "rocksdb",
            "datadir": "none: nothing is kept" if in_memory else str(settings.data_dir.absolute()),
        }
        return [(name, here.get(name, value)) for name, value in super()._banner_data(worker) if name != "appdir"]


class send(faust_send):
    """Send a message to a topic or an agent, as bytes unless a type or a serializer is given."""

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Send without a worker around it, so that a failure is one sentence."""
        try:
            asyncio.run(self._send())
        except TransportError as error:
            click.echo(f"Error: {self._explain(error)}", err=True)
            raise SystemExit(1) from error
        raise SystemExit(0)

    async def _send(self) -> None:
        broker = cast(Any, self.app).engine.broker
        try:
            await broker.start()
            await self.execute(*self.args, **self.kwargs)
        finally:
            await broker.stop()

    def to_topic(self, entity: str) -> Any:
        """The topic of that name, or the one that `@agent` reads."""
        if not entity.startswith("@"):
            return super().to_topic(entity)
        agents = cast(Any, self.app).engine.agents
        if entity[1:] not in agents:
            raise TransportError(f"there is no agent {entity[1:]}; `faust agents` lists them")
        return super().to_topic(agents[entity[1:]].name)

    def _explain(self, error: TransportError) -> str:
        if not isinstance(error.__cause__, LogLocked):
            return str(error)
        settings = _settings_of(self)
        return (
            f"a worker has the log in {settings.data_dir.absolute()} open: "
            f"send commands to its HTTP view at {settings.local_url}"
        )


class _Refused(AppCommand):
    """A command of Faust that would do harm or nothing here."""

    abstract: ClassVar[bool] = True
    reason: ClassVar[str]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Say what to use instead."""
        raise click.UsageError(self.reason)


class reset(_Refused):
    """Not available: see the commands `repair` and `rebuild`."""

    reason = (
        "tables here are in the stores of the partitions: `rebuild TABLE` makes a projection anew while the worker "
        "runs, `repair` mends a store or a changelog; nothing has to be reset by hand"
    )


class livecheck(_Refused):
    """Not available: see /healthz, the doctor and the audit."""

    reason = "LiveCheck is not available here: ask /healthz and /readyz, or run `doctor`"


class clean_versions(_Refused):
    """Not available: there are no version folders."""

    reason = "there are no version folders here: the data of all releases is in one data folder"
