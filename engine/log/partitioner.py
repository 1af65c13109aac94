"""Kafka's default partitioner, so that any Kafka client and every transport agree on a key's partition."""

from functools import lru_cache

from aiokafka.partitioner import murmur2

# The hash is pure Python (about 5 µs a key) and hot keys repeat; the bound keeps the cache at some 20 MB.
_CACHED_KEYS_MAX = 131_072


def partition_for(key: bytes, partitions: int) -> int:
    """Partition (0 to partitions - 1) that Kafka's default partitioner gives to a key."""
    return _positive_hash(key) % partitions


@lru_cache(maxsize=_CACHED_KEYS_MAX)
def _positive_hash(key: bytes) -> int:
    hashed: int = murmur2(key)
    return hashed & 0x7FFFFFFF
