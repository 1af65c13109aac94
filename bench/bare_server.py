"""A bare aiohttp handler that answers a constant, for `bench.reads`: what the web server can do at best.

python -m bench.bare_server PORT BYTES
"""

import sys

import uvloop
from aiohttp import web


def main() -> None:
    """Answer `GET /` with so many bytes of JSON until told to stop."""
    port, size = int(sys.argv[1]), int(sys.argv[2])
    body = b'{"x":"' + b"x" * (size - 8) + b'"}'

    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=body, content_type="application/json")

    application = web.Application()
    application.router.add_get("/", answer)
    web.run_app(application, host="127.0.0.1", port=port, print=None, access_log=None, loop=uvloop.new_event_loop())


if __name__ == "__main__":
    main()
