"""Positions of agents, held against the log; records that were lost, and the acceptance of a loss."""
