"""Ports of the log, and the two logs behind them."""
