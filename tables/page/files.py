"""The files of the page, read once, from this package and from the one that carries Chart.js."""

from __future__ import annotations

import functools
import gzip
import hashlib
from collections.abc import Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Final, NamedTuple

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
def asset(name: str) -> Asset:
    """The file called `name`; raises KeyError when there is none. Chart.js takes about 30 ms the first time."""
    file = _files()[name]
    body = file.read_bytes()
    content_type = CONTENT_TYPES[name[name.rindex(".") :]]
    etag = f'W/"{hashlib.sha256(body).hexdigest()[:20]}"'
    return Asset(content_type, body, gzip.compress(body, 6, mtime=0), etag)


@functools.cache
def _files() -> Mapping[str, Traversable]:
    """Every file there is, by name; only these can be asked for."""
    own = {file.name: file for file in files(__package__).joinpath("assets").iterdir()}
    return own | {CHART_JS: files("chartkick").joinpath("django", "static", "chartkick", "Chart.bundle.js")}
