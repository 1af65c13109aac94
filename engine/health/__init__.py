"""Faults, and the watches that look for them: partitions that stand still, disks, brokers, retention; the doctor."""
