"""The files of the page, read once: the engine's, the application's, and Chart.js from the package that carries it."""

from __future__ import annotations

import functools
import gzip
import hashlib
import html
from collections.abc import Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable
from string import Template
from typing import Final, NamedTuple

from engine.declare.application import Application

CONTENT_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
INDEX: Final = "index.html"
CHART_JS: Final = "chart.js"


class Asset(NamedTuple):
    """A file as it is served; the tag changes with its content."""

    content_type: str
    body: bytes
    zipped: bytes
    etag: str


@functools.cache
def asset(application: Application, name: str) -> Asset:
    """The file called `name`; raises KeyError when there is none. Chart.js takes about 30 ms the first time."""
    file = _files(application.page)[name]
    body = file.read_bytes()
    if name == INDEX:
        names = {"name": application.name, "heading": html.escape(application.heading)}
        body = Template(body.decode()).safe_substitute(names).encode()
    content_type = CONTENT_TYPES[name[name.rindex(".") :]]
    etag = f'W/"{hashlib.sha256(body).hexdigest()[:20]}"'
    return Asset(content_type, body, gzip.compress(body, 6, mtime=0), etag)


@functools.cache
def _files(package: str) -> Mapping[str, Traversable]:
    """Every file there is, by name, the application's in the place of the engine's; only these can be asked for."""
    packages = (__package__, package) if package else (__package__,)
    found = {file.name: file for name in packages for file in files(name).joinpath("assets").iterdir()}
    return found | {CHART_JS: files("chartkick").joinpath("django", "static", "chartkick", "Chart.bundle.js")}
