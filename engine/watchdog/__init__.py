"""Handlers that do not return: the thread that interrupts them, and marks of their records."""
