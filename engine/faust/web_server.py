"""The web server: Faust's, with our routes only, and with limits on its connections."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, ClassVar, cast

from aiohttp import web
from faust.web.drivers import aiohttp as faust_aiohttp

from engine.declare.settings import Settings
from engine.web.answers import Around
from engine.web.connections import IDLE_S, Connections, Patience

log = logging.getLogger(__name__)

# A handler that is still at work when the worker stops; requests that wait are let go before.
SHUTDOWN_S = 3.0


class WebServer(faust_aiohttp.Web):
    """Serves the routes of the services, and nothing that Faust would add: its index, tables and statistics."""

    default_blueprints: ClassVar[Any] = ()
    production_blueprints: ClassVar[Any] = ()
    debug_blueprints: ClassVar[Any] = ()
    optional_blueprints: ClassVar[Any] = ()

    patience = Patience()

    def __init__(self, app: Any, settings: Settings, **kwargs: Any) -> None:
        super().__init__(app, **kwargs)
        self._connections_max = settings.web_connections_max
        self._setting = settings.variable("web_connections_max")
        # Faust's own runner lets requests go on whose clients have gone away; XX
        self._runner = web.AppRunner(
            self.web_app,
            access_log=None,
            handler_cancellation=True,
            keepalive_timeout=IDLE_S,
            shutdown_timeout=SHUTDOWN_S,
        )
        self._connections: Connections | None = None
        self.around: list[Around] = []  # from the inside out

    def _new_transport_tcp(self) -> web.BaseSite:
        server = cast(web.Server, self._runner.server)
        for around in self.around:
            server.request_handler = around(server.request_handler)  # type: ignore[assignment]
        maximum = within_open_files(self._connections_max)
        self._connections = Connections(server, maximum, self.patience, self._setting)
        conf = self.app.conf
        return _Site(self._runner, conf.web_bind, conf.web_port, self._connections, conf.web_ssl_context)

    async def stop_server(self) -> None:
        """Stop listening, and let requests that are being answered end."""
        if self._connections is not None:
            self._connections.close()
        await super().stop_server()


class _Site(web.TCPSite):
    """Listens with `connections` in place of the runner's server, which takes everybody."""

    __slots__ = ("_connections",)

    def __init__(
        self, runner: web.AppRunner, host: str | None, port: int, connections: Connections, ssl_context: Any
    ) -> None:
        super().__init__(runner, host, port, ssl_context=ssl_context)
        self._connections = connections

    async def start(self) -> None:
        """Listen."""
        await web.BaseSite.start(self)
        self._server = await asyncio.get_running_loop().create_server(
            self._connections, self._host, self._port, ssl=self._ssl_context, backlog=self._backlog
        )


def within_open_files(connections: int) -> int:
    """So many connections that the process has as many files left for its tables: RocksDB cannot do without."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return connections
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY or connections <= files // 2:
        return connections
    log.warning(
        "this process may open %d files (`ulimit -n`): the web view takes %d connections, not %d",
        files, files // 2, connections,
    )  # fmt: skip
    return files // 2
