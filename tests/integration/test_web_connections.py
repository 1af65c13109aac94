"""The limits of the web server's connections and requests, over real sockets."""

from __future__ import annotations

import asyncio
import gzip
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import httpx
import msgspec
import pytest

from engine.faust.app import EngineApp
from engine.faust.web_server import WebServer, within_open_files
from engine.web.answers import BODY_BYTES_MAX
from engine.web.connections import Connection, Patience
from engine.work import waiters
from tests.apps import make_settings, running, unique, wait_until
from tests.integration.web import check_problem, check_unavailable, client_of, hold_up, order, place

IMPATIENT = Patience(first_request=0.3, body=0.3, unread=0.3)


class Raw:
    """A client that may do everything wrong."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Read one answer."""
        head = await asyncio.wait_for(self._reader.readuntil(b"\r\n\r\n"), 5)
        status, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines if line)}
        body = await asyncio.wait_for(self._reader.readexactly(int(headers["content-length"])), 5)
        return int(status.split()[1]), headers, body

    async def problem(self, status: int) -> str:
        """Read an answer, which must be a problem with this status; its detail."""
        found, headers, body = await self.answer()
        assert found == status, body
        assert headers["content-type"] == "application/problem+json"
        assert headers["x-content-type-options"] == "nosniff"
        return str(msgspec.json.decode(body)["detail"])

    async def closed(self, within_s: float = 5.0) -> bytes:
        """Read until the worker hangs up."""
        try:
            return await asyncio.wait_for(self._reader.read(), within_s)
        except ConnectionError:
            return b""

    async def close(self) -> None:
        self._writer.close()
        with suppress(ConnectionError):
            await self._writer.wait_closed()


@asynccontextmanager
async def raw(app: EngineApp) -> AsyncIterator[Raw]:
    """Connect."""
    client = Raw(*await asyncio.open_connection("127.0.0.1", app.engine.settings.web_port))
    try:
        yield client
    finally:
        await client.close()


def head(line: str, *headers: str) -> bytes:
    return "\r\n".join((f"{line} HTTP/1.1", "Host: localhost", *headers, "", "")).encode()


@asynccontextmanager
async def impatient(folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: object) -> AsyncIterator[EngineApp]:
    """Run an application whose web server waits for nobody."""
    monkeypatch.setattr(WebServer, "patience", IMPATIENT)
    async with running(make_settings("memory://", folder, **changes)) as app:
        yield app


# ---- connections


async def test_one_connection_too_many_is_told_so_and_closed(tmp_path: Path) -> None:
    async with running(make_settings("memory://", tmp_path, web_connections_max=2)) as app:
        async with raw(app) as one, raw(app) as two:
            for client in (one, two):
                await client.send(head("GET /healthz"))
                assert (await client.answer())[0] == 200
            async with raw(app) as refused:
                await refused.send(head("GET /healthz"))
                assert "connections" in await refused.problem(503)
                assert await refused.closed() == b""
            await one.send(head("GET /healthz"))  # those that are there go on
            assert (await one.answer())[0] == 200
        await wait_until(lambda: not open_connections(app), "they are gone")
        async with client_of(app) as another:
            assert (await another.get("/healthz")).status_code == 200


async def test_a_flood_of_connections_leaves_room_for_those_that_are_there(tmp_path: Path) -> None:
    async with running(make_settings("memory://", tmp_path, web_connections_max=5)) as app, raw(app) as first:
        await first.send(head("GET /healthz"))
        assert (await first.answer())[0] == 200
        flood = await asyncio.gather(
            *(asyncio.open_connection("127.0.0.1", app.engine.settings.web_port) for _ in range(200))
        )
        await first.send(head("GET /healthz"))
        assert (await first.answer())[0] == 200
        for _, writer in flood:
            writer.close()


@pytest.mark.parametrize("sent", [b"", b"GET /heal", head("GET /healthz")[:-2]])
async def test_who_sends_no_whole_request_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    async with impatient(tmp_path, monkeypatch) as app, raw(app) as client:
        await client.send(sent)
        assert await client.closed() == b""


async def test_who_drips_headers_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with impatient(tmp_path, monkeypatch) as app, raw(app) as client:
        await client.send(head("GET /healthz")[:-2])
        closed = asyncio.create_task(client.closed())
        while not closed.done():
            await client.send(b"X-Drip: 1\r\n")
            await asyncio.sleep(0.05)
        assert await closed == b""


@pytest.mark.parametrize("framing", ["Content-Length: 100", "Transfer-Encoding: chunked"])
async def test_a_body_that_does_not_end_is_a_408(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, framing: str) -> None:
    async with impatient(tmp_path, monkeypatch) as app, raw(app) as client:
        await client.send(head("POST /orders", framing) + (b"1\r\n{\r\n" if "chunked" in framing else b"{"))
        assert "body" in await client.problem(408)
        assert await client.closed() == b""


async def test_who_does_not_read_the_answers_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with impatient(tmp_path, monkeypatch) as app:
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            client.connect(("127.0.0.1", app.engine.settings.web_port))
            client.setblocking(False)
            connections = open_connections(app)
            await wait_until(lambda: connections, "the client is connected")
            sending = asyncio.create_task(
                asyncio.get_running_loop().sock_sendall(client, head("GET /metrics") * 20_000)
            )
            await wait_until(lambda: not connections, "the client is cut off", 10)
            sending.cancel()


def open_connections(app: EngineApp) -> Mapping[Connection, asyncio.Transport]:
    server = app.web
    assert isinstance(server, WebServer)
    assert server._connections is not None
    return server._connections.open


async def test_a_patient_request_and_an_idle_connection_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with impatient(tmp_path, monkeypatch) as app, client_of(app) as client, raw(app) as idle:
        await idle.send(head("GET /healthz"))
        assert (await idle.answer())[0] == 200
        token = await place(client, order(order_id=unique("order")))
        await hold_up(app)
        await place(client, order(order_id=(id := unique("order"))))
        token = await place(client, order(order_id=id))
        answer = await client.get(f"/orders/{id}", params={"after": token, "timeout": "900ms"})
        check_problem(answer, 504)
        await idle.send(head("GET /healthz"))
        assert (await idle.answer())[0] == 200


async def test_a_stop_does_not_wait_for_clients(tmp_path: Path) -> None:
    async with running(make_settings("memory://", tmp_path)) as app, raw(app) as client, raw(app) as idle:
        await client.send(head("POST /orders", "Content-Length: 100"))
        await idle.send(head("GET /healthz"))
        await idle.answer()
        began = asyncio.get_running_loop().time()
        await app.stop()
        assert asyncio.get_running_loop().time() - began < 9


# ---- requests


async def test_what_is_no_request_is_answered_with_a_problem(tmp_path: Path) -> None:
    async with running(make_settings("memory://", tmp_path)) as app:
        for sent in (
            b"<script>alert(1)</script>\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",  # TLS
            head("GET /" + "a" * 10_000),
            head("GET /healthz", "X: " + "a" * 10_000),
            head("GET /healthz", *(f"X-{number}: 1" for number in range(1000))),
            head("GET /healthz", "Content-Length: -1"),
            head("POST /orders", "Content-Length: 2", "Transfer-Encoding: chunked"),
        ):
            async with raw(app) as client:
                await client.send(sent)
                assert "HTTP/1.1" in await client.problem(400)
                assert await client.closed() == b""


async def test_a_body_over_the_limit_is_refused_however_it_comes(tmp_path: Path) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(2 * BODY_BYTES_MAX // 65536):
            yield b" " * 65536

    async with running(make_settings("memory://", tmp_path)) as app, client_of(app) as client:
        packed = gzip.compress(b" " * (64 * BODY_BYTES_MAX))
        for path in ("/orders", "/orders/batch", "/inventory/batch", "/dead-letters/retry", "/orders/a/cancel"):
            check_problem(await client.post(path, content=b" " * (BODY_BYTES_MAX + 1)), 413)
            check_problem(await client.post(path, content=chunks()), 413)
            check_problem(await client.post(path, content=packed, headers={"Content-Encoding": "gzip"}), 413)


async def test_every_list_has_a_largest_page(tmp_path: Path) -> None:
    async with running(make_settings("memory://", tmp_path)) as app, client_of(app) as client:
        for path in (
            "/customers/c/orders",
            "/tables/orders",
            "/dead-letters",
            "/dead-letters/groups",
            "/aggregates/waiting",
            "/analytics/products",
            "/topics/order-events/records?partition=0",
        ):
            for limit in ("0", "-1", "1000000", "1e3", "9" * 30, "all"):
                problem = check_problem(
                    await client.get(path, params={**dict(httpx.URL(path).params), "limit": limit}), 422
                )
                assert problem["errors"][0]["field"] == "limit"


async def test_one_waiting_request_too_many_is_told_to_come_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiters, "WAITERS_MAX", 3)
    async with running(make_settings("memory://", tmp_path, partitions=2)) as app, client_of(app) as client:
        await hold_up(app)
        ids = [unique("order") for _ in range(4)]
        tokens = [await place(client, order(order_id=id)) for id in ids]

        async def read(index: int, timeout: str) -> httpx.Response:
            return await client.get(f"/orders/{ids[index]}", params={"after": tokens[index], "timeout": timeout})

        waiting = [asyncio.create_task(read(index, "700ms")) for index in range(3)]
        await wait_until(lambda: app.engine.waiting.count == 3, "three requests wait")
        problem = check_unavailable(await read(3, "700ms"))
        assert "wait" in problem["detail"]
        assert [answer.status_code for answer in await asyncio.gather(*waiting)] == [504] * 3
        check_problem(await read(3, "10ms"), 504)


def test_tables_keep_the_files_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 4096))
    assert within_open_files(1000) == 512
    assert within_open_files(100) == 100
