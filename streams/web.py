"""What all routes of the web view share."""

from typing import Any

from aiohttp import web

from streams.engine.engine import Engine

ENGINE: web.AppKey[Engine] = web.AppKey("engine", Engine)
FAUST_APP: web.AppKey[Any] = web.AppKey("faust_app", object)
