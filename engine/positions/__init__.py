"""Positions of agents, held against the log: records that were lost, and what is done about them."""
