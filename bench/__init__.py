"""Benchmarks: this project beside its peers, measured from outside on one broker."""
