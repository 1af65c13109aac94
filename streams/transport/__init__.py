"""Faust transport drivers: one contract, three URLs."""
