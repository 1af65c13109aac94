"""What pages of other sites must not do through a browser: change anything, or read under a name of their own."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from urllib.parse import urlsplit

from aiohttp import web

from engine.declare.settings import Settings, in_url
from engine.web.binding import is_loopback

HostCheck = Callable[[str], bool]


def host_check(settings: Settings, bound_to: str) -> HostCheck | None:
    """Whether a `Host` header names this worker; None when that cannot be known.

    What listens on this machine only is asked for by a name of this machine, or of the proxy before it. Any other name
    belongs to a page whose own name was made to point here (DNS rebinding): its browser takes it for one site with us.
    """
    if not is_loopback(bound_to):
        return None
    proxy = (urlsplit(settings.web_url).hostname or "").lower()

    @lru_cache(maxsize=256)
    def is_ours(host: str) -> bool:
        name = _name_of(host)
        return name is not None and (is_loopback(name) or (name != "" and name == proxy))

    return is_ours


def _name_of(host: str) -> str | None:
    """Host name of `name:port`; None when it is none."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return None


def is_from_another_site(request: web.Request, own_url: str) -> bool:
    """Whether a browser says that a page of another site makes this request.

    Programs that are no browsers send neither header. Behind a proxy `Host` may be another one than the browser's:
    the page's origin may be `own_url`, where users reach this worker, as well.
    """
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None:
        return site not in ("same-origin", "none")
    origin = request.headers.get("Origin")
    if origin is None:
        return False
    return origin != _origin_of(own_url) and urlsplit(origin).netloc != request.headers.get("Host")


def _origin_of(url: str) -> str:
    """An address as browsers name its origin: small letters, no path, and a port only if it is not the usual one."""
    parts = urlsplit(url)
    usual = {"http": 80, "https": 443}.get(parts.scheme)
    port = "" if parts.port in (None, usual) else f":{parts.port}"
    return f"{parts.scheme}://{in_url(parts.hostname or '')}{port}"
