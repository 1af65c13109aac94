"""The rows of a partition in RocksDB: restore, repair, scrub, and the cache before it."""
