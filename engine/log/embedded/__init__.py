"""The embedded log: partitions of records in RocksDB, with nothing but Python."""
