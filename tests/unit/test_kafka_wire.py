"""Hot requests and answers of Kafka are the same bytes and values as aiokafka's own code makes."""

import random
from io import BytesIO
from typing import Any

import pytest
from aiokafka.protocol import fetch, produce, transaction
from aiokafka.protocol.struct import Struct
from aiokafka.protocol.types import Array, Boolean, Bytes, Int8, Int16, Int32, Int64, Schema, String

from engine.log.kafka import wire as kafka_wire

REQUESTS = (
    produce.ProduceRequest,
    fetch.FetchRequest,
    transaction.AddPartitionsToTxnRequest,
    transaction.TxnOffsetCommitRequest,
)
VERSIONS = [version for request in REQUESTS for version in request._CLASSES]
KINDS = [*VERSIONS, *{version.RESPONSE_TYPE: None for version in VERSIONS}]


def some(kind: Any, chance: random.Random) -> Any:
    """A value of a field of a schema, empty and missing ones included."""
    if isinstance(kind, Schema):
        return tuple(some(field, chance) for field in kind.fields)
    if isinstance(kind, Array):
        return [some(kind.array_of, chance) for _ in range(chance.randint(0, 4))]
    if isinstance(kind, String):
        return chance.choice([None, "", "order-events", "Bestellungen für Größe"])
    bits = {Int8: 7, Int16: 15, Int32: 31, Int64: 63}
    if kind in bits:
        return chance.choice([-1, 0, chance.getrandbits(bits[kind])])
    if kind is Boolean:
        return chance.random() < 0.5
    assert kind is Bytes
    return chance.choice([None, b"", chance.randbytes(300)])


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_bytes_and_values_are_those_of_aiokafka(kind: Any) -> None:
    chance = random.Random(kind.__name__)
    for _ in range(50):
        values = [some(field, chance) for field in kind.SCHEMA.fields]
        message = kind(*values)
        raw = Struct.encode(message)
        assert kafka_wire.encode(message) == raw
        behind_a_header = BytesIO(b"1234" + raw)
        behind_a_header.seek(4)
        assert kafka_wire.decode(kind, behind_a_header) == Struct.decode.__func__(kind, raw)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_answer_that_ends_early_is_an_error(kind: Any) -> None:
    if not kind.SCHEMA.fields:
        return
    chance = random.Random(1)
    raw = Struct.encode(kind(*[some(field, chance) for field in kind.SCHEMA.fields]))
    with pytest.raises(ValueError, match="early"):
        kafka_wire.decode(kind, raw[:-1])
