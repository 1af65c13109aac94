"""The partitioner agrees with Kafka's."""

import pytest

from engine.log.partitioner import partition_for

# Hashes from Kafka's own UtilsTest.testMurmur2.
KAFKA_HASHES = {
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
}


@pytest.mark.parametrize("partitions", [1, 3, 4, 16])
@pytest.mark.parametrize(("key", "kafka_hash"), KAFKA_HASHES.items())
def test_a_key_lands_on_the_partition_that_kafka_chooses(key: bytes, kafka_hash: int, partitions: int) -> None:
    assert partition_for(key, partitions) == (kafka_hash & 0x7FFFFFFF) % partitions


def test_a_key_asked_for_again_lands_on_the_same_partition() -> None:
    assert {partition_for(b"order-1", 8) for _ in range(3)} == {partition_for(b"order-1", 8)}


def test_an_empty_key_has_a_partition() -> None:
    assert 0 <= partition_for(b"", 4) < 4
