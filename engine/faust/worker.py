"""The process of a worker: its signals, and an exit status that says how it ended."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn, cast

import faust

from engine.declare.settings import Settings
from engine.faust.app import EngineApp
from engine.observe.logs import configure_logging
from engine.observe.tracing import environment
from engine.partition.engine import Engine
from engine.watchdog.watchdog import watching
from engine.web.binding import binding_problem, token_warning

log = logging.getLogger(__name__)

READY_POLL_S = 0.05
GC_THRESHOLD = 100_000  # new objects that are looked at together, for about 30 ms, in which nothing else happens
# Below the 10 s after which whoever sent SIGTERM may kill us.
STOP_TIMEOUT_S = 9.0
_BIND_ERRORS = frozenset((errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES))


class EngineWorker(faust.Worker):
    """What `faust -A MODULE worker` runs: the same process as the command `worker` of the application."""

    def execute_from_commandline(self) -> NoReturn:
        """Run until a signal or a failure; exit with a status that tells them apart."""
        app = cast(EngineApp, self.app)
        configure_logging(app.engine.settings, _level_name(self.loglevel))
        raise SystemExit(self.loop.run_until_complete(serve(app)))


def _level_name(level: str | int | None) -> str:
    """Python's name of a level given to Faust, which abbreviates some."""
    text = str(level or "WARNING").upper()
    return {"WARN": "WARNING", "CRIT": "CRITICAL"}.get(text, text)


def tune_garbage_collector() -> None:
    """Look for cycles less often: rows and records are immutable and hold none, and there are very many of them.

    Measured on the job of bench/README.md: 5 to 8 % of the whole cost with Python's defaults.
    """
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD, 50, 100)


def run_in_loop(main: Coroutine[Any, Any, int]) -> int:
    """Run a coroutine on uvloop where there is one, on asyncio's own loop elsewhere."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


async def serve(
    app: EngineApp,
    *,
    stop: asyncio.Event | None = None,
    once_ready: Callable[[], Awaitable[None]] | None = None,
) -> int:
    """Run a worker until SIGTERM, SIGINT, `stop` or a failure; return the exit status. To be run in the main thread.

    `once_ready` runs beside it as soon as all partitions are restored, and is cancelled when the worker stops. A
    failure is logged: in one line when it is the user's to solve, with its trace otherwise.
    """
    app.finalize()
    tune_garbage_collector()
    settings = app.engine.settings
    problem = (
        address_problem(app)
        or data_dir_problem(settings)
        or retry_topics_problem(app.engine)
        or environment.problem(os.environ)
    )
    if problem is not None:
        log.critical("%s", problem)
        return 1
    if (warning := token_warning(settings)) is not None:
        log.warning("%s", warning)
    if settings.transport == "kafka" and settings.handler_timeout >= settings.session_timeout:
        log.warning(
            "%s should be below %s: Kafka gives the partitions away before a handler that hangs is interrupted",
            settings.variable("handler_timeout"),
            settings.variable("session_timeout"),
        )
    stop = stop or asyncio.Event()
    app.in_worker = True
    app.engine.on_fatal = stop.set
    life = asyncio.create_task(_live(app, once_ready), name="worker")
    crash = asyncio.create_task(_crash_of(app), name="crash")
    with _signals_set(stop), watching(settings.handler_timeout):
        stopping = asyncio.create_task(stop.wait(), name="stop")
        await asyncio.wait({life, crash, stopping}, return_when=asyncio.FIRST_COMPLETED)
        failure = next((task.exception() for task in (life, crash) if task.done()), None)
        if failure is not None:
            _report(app, failure)
        for task in (life, crash, stopping):
            task.cancel()
        await asyncio.wait({life, crash, stopping})
        stopped = await _stop(app)
    if failure is None and app.engine.fatal is None and stopped:
        log.info("stopped")
        return 0
    return 1


async def _live(app: EngineApp, once_ready: Callable[[], Awaitable[None]] | None) -> None:
    settings, began = app.engine.settings, time.monotonic()
    log.info("worker %s starts on %s", settings.app_id, settings.broker)
    if environment.is_on(os.environ):
        log.info("tracing is on")
    await app.start()
    while not app.engine.is_ready():
        await asyncio.sleep(READY_POLL_S)
    log.info("ready after %.1f s: %s", time.monotonic() - began, app.conf.canonical_url)
    if once_ready is not None:
        await once_ready()
    await asyncio.Event().wait()


async def _crash_of(app: EngineApp) -> None:
    """Raise what made a part of the application crash, whenever that happens."""
    await app._crashed.wait()
    raise app.crash_reason or RuntimeError("the application crashed")


def _report(app: EngineApp, error: BaseException) -> None:
    if app.engine.fatal is not None:
        return  # the engine has said so
    if isinstance(error, socket.gaierror) or (isinstance(error, OSError) and error.errno in _BIND_ERRORS):
        log.critical("%s", _bind_problem(app, error))
    else:
        log.critical("the worker failed", exc_info=error)


def _bind_problem(app: EngineApp, error: OSError) -> str:
    where, variable = f"{app.conf.web_bind}:{app.conf.web_port}", app.engine.settings.variable
    if error.errno == errno.EADDRINUSE:
        return f"{where} is in use, perhaps by another worker. Stop that, or set {variable('web_port')} to a free port."
    reason = error.strerror or str(error)
    settings = f"{variable('web_host')} and {variable('web_port')}"
    return f"cannot listen on {where}: {reason}. Set {settings} to an address of this machine."


async def _stop(app: EngineApp) -> bool:
    """Commit what is open and let go of everything; whether that was done in time."""
    stopping = asyncio.create_task(app.stop(), name="stop")
    done, _ = await asyncio.wait({stopping}, timeout=STOP_TIMEOUT_S)
    if not done:
        log.error("not everything could be stopped within %.0f s; what was not committed comes again", STOP_TIMEOUT_S)
        return False
    if (error := stopping.exception()) is not None:
        log.error("stopping failed", exc_info=error)
        return False
    return True


@contextmanager
def _signals_set(stop: asyncio.Event) -> Iterator[None]:
    """Set `stop` on the first SIGINT or SIGTERM; the second one ends the process at once, which loses nothing."""
    loop = asyncio.get_running_loop()

    def on_signal(number: signal.Signals) -> None:
        if stop.is_set():
            os._exit(1)
        log.info("stopping on %s", number.name)
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        with suppress(NotImplementedError):  # no such signals on Windows' loop
            loop.add_signal_handler(number, on_signal, number)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            with suppress(NotImplementedError):
                loop.remove_signal_handler(number)


def address_problem(app: EngineApp) -> str | None:
    """What keeps a worker from listening where it is told to: by its settings, or by Faust's own options."""
    if not app.conf.web_enabled or app.conf.web_transport.scheme == "unix":
        return None
    return binding_problem(app.engine.settings, app.conf.web_bind or "")


def retry_topics_problem(engine: Engine) -> str | None:
    """What is wrong with the setting `retry_topics`: a misspelt topic there would keep what is meant for all."""
    unknown = sorted(engine.settings.retry_topics.keys() - engine.retried_topics())
    if not unknown:
        return None
    known = ", ".join(sorted(engine.retried_topics()))
    setting = engine.settings.variable("retry_topics")
    return f"{setting} names {', '.join(unknown)}, which no agent reads. It can have: {known}."


def data_dir_problem(settings: Settings) -> str | None:
    """What keeps a worker from using the data folder, with what to do about it; None when nothing does."""
    if settings.transport == "memory":
        return None
    folder, setting = settings.data_dir.absolute(), settings.variable("data_dir")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        return f"the data folder {folder} is a file. Set {setting} to the folder with the data, or a new one."
    except OSError as error:
        return f"cannot make the data folder {folder}: {error.strerror}. Set {setting} to a folder you may write."
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        move = settings.application.moving_data
        return f"the data folder {folder} cannot be written by this user. Give it the rights, or {move}."
    return None
