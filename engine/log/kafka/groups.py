"""Who is in a consumer group now."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import GroupCoordinatorNotAvailableError, KafkaError, for_code

from engine.log.ports import TransportError

ATTEMPTS: Final = 50
PAUSE_S: Final = 0.2


async def read_members(options: Mapping[str, Any], group: str) -> Sequence[str]:
    """Client and machine of each member of a consumer group; empty where there is no such group."""
    admin = AIOKafkaAdminClient(**options)
    try:
        await admin.start()
        described = await _describe(admin, group)
        if described["error_code"]:
            raise for_code(described["error_code"])
    except KafkaError as error:
        raise TransportError(f"cannot list the members of the consumer group {group}: {error!r}") from error
    finally:
        await admin.close()
    return [f"{member['client_id']} at {member['client_host'].lstrip('/')}" for member in described["members"]]


async def _describe(admin: AIOKafkaAdminClient, group: str) -> Any:
    """A broker that has just started knows no coordinator for a moment."""
    for attempt in range(ATTEMPTS):
        try:
            (answer,) = await admin.describe_consumer_groups([group])
            return answer.to_object()["groups"][0]
        except GroupCoordinatorNotAvailableError:
            if attempt == ATTEMPTS - 1:
                raise
            await asyncio.sleep(PAUSE_S)
    raise AssertionError("the last attempt returns or raises")
