"""A payment gateway behind HTTP."""

import asyncio
import logging
from collections.abc import Mapping
from typing import Annotated, Any, Final, TypeVar

import httpx
import msgspec

from engine import Unavailable, answered, calling
from engine.inspection import slot
from streams.events.money import Money
from streams.events.payment_answers import Charged, Declined, Refunded
from streams.settings import Settings

log = logging.getLogger(__name__)

ANSWER_BYTES_MAX: Final = 64 << 10
_DECLINED: Final = frozenset({402, 409, 422})
_TRY_AGAIN: Final = frozenset({408, 425, 429})
_CHECK: Final = {
    400: "the gateway cannot read the request; check that ORDERS_PAYMENT_URL is a gateway of this kind",
    401: "the gateway does not know this client; check the user and password in ORDERS_PAYMENT_URL",
    403: "this client may not do that; check the user and password in ORDERS_PAYMENT_URL",
    404: "there is no such path; check ORDERS_PAYMENT_URL",
    405: "the path takes no POST; check ORDERS_PAYMENT_URL",
}
_CHECK_URL: Final = "not an answer of a payment gateway; check ORDERS_PAYMENT_URL"


class _Accepted(msgspec.Struct, frozen=True, gc=False):
    reference: Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]


class _Refused(msgspec.Struct, frozen=True, gc=False):
    reason: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]


A = TypeVar("A", _Accepted, _Refused)


class HttpGateway:
    """`POST {url}/charges` and `POST {url}/refunds` as JSON, with the key as header `Idempotency-Key`.

    Answers: 2xx `{reference}`; 402, 409 or 422 `{reason}` declines for good. Everything else is no answer and raises
    Unavailable, so that no money is lost to a typo or to a 409 that only means "still at work on this key".
    """

    def __init__(self, settings: Settings) -> None:
        calls_max = settings.outside_calls_max
        url = httpx.URL(settings.payment_url)
        self._url = str(url.copy_with(userinfo=b"")).rstrip("/")  # in errors and logs, where a password must not be
        self._attributes = {"http.request.method": "POST", "server.address": url.host}
        self._timeout_s = settings.payment_timeout
        self._mistake_told = 0
        # One slot per connection: a call waits here before its time starts to run, not in the client's pool after it.
        self._slots = asyncio.Semaphore(calls_max)
        self._client = httpx.AsyncClient(
            auth=(url.username, url.password) if url.userinfo else None,
            timeout=None,
            limits=httpx.Limits(max_connections=calls_max, max_keepalive_connections=calls_max),
            headers={"Accept": "application/json", "Content-Type": "application/json"},
        )

    async def close(self) -> None:
        """Close all connections; calls that still run find no answer."""
        await self._client.aclose()

    async def charge(self, order_id: str, customer_id: str, amount: Money, key: str) -> Charged | Declined:
        """Take the money of an order."""
        body = {"order_id": order_id, "customer_id": customer_id, "amount": amount}
        answer = await self._post("/charges", body, key)
        return Charged(answer.reference) if isinstance(answer, _Accepted) else Declined(answer.reason)

    async def refund(self, order_id: str, reference: str, amount: Money, key: str) -> Refunded | Declined:
        """Give back what was taken as `reference`."""
        body = {"order_id": order_id, "reference": reference, "amount": amount}
        answer = await self._post("/refunds", body, key)
        return Refunded(answer.reference) if isinstance(answer, _Accepted) else Declined(answer.reason)

    async def _post(self, path: str, body: dict[str, Any], key: str) -> _Accepted | _Refused:
        async with slot(self._slots):
            with calling(f"POST {path}", self._attributes) as trace:
                status, content = await self._ask(path, msgspec.json.encode(body), {"Idempotency-Key": key, **trace})
        if 200 <= status < 300:
            return _read(content, _Accepted, status, path)
        if status in _DECLINED:
            return _read(content, _Refused, status, path)
        if status in _TRY_AGAIN or status >= 500:
            raise Unavailable(f"the payment gateway answers {status} to {path}")
        raise Unavailable(self._mistake(status, path))

    def _mistake(self, status: int, path: str) -> str:
        """What to check: this is nothing that an order did, and waiting alone will not mend it."""
        message = f"the payment gateway answers {status} to {path}: {_CHECK.get(status, _CHECK_URL)}"
        if status != self._mistake_told:  # each call says so, and is made again and again
            log.error("%s; payments wait until then", message)
            self._mistake_told = status
        return message

    async def _ask(self, path: str, content: bytes, headers: Mapping[str, str]) -> tuple[int, bytes]:
        """Status and body of the answer; raises Unavailable when there is none in time."""
        if self._client.is_closed:
            raise Unavailable("the payment gateway's connections are closed: the worker stops, or starts again")
        try:
            async with asyncio.timeout(self._timeout_s), self._stream(path, content, headers) as answer:
                answered(answer.status_code)
                received = bytearray()
                async for part in answer.aiter_bytes():
                    received += part
                    if len(received) > ANSWER_BYTES_MAX:
                        raise Unavailable(f"the payment gateway answers {path} with more than {ANSWER_BYTES_MAX} bytes")
                return answer.status_code, bytes(received)
        except TimeoutError as error:
            raise Unavailable(f"the payment gateway does not answer {path} within {self._timeout_s:g} s") from error
        except (httpx.HTTPError, httpx.StreamError, OSError) as error:
            detail = str(error) or type(error).__name__
            raise Unavailable(f"the payment gateway cannot be reached for {path}: {detail}") from error

    def _stream(self, path: str, content: bytes, headers: Mapping[str, str]) -> Any:
        return self._client.stream("POST", f"{self._url}{path}", content=content, headers=headers)


def _read(content: bytes, kind: type[A], status: int, path: str) -> A:
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Unavailable(f"the payment gateway's answer {status} to {path} cannot be read: {error}") from error
