"""A worker whose clock is off by SKEW_S seconds: `python -m tests.chaos.skewed_worker`."""

from __future__ import annotations

import os
import time


def main() -> None:
    """Let the clock jump before anything looks at it, and run the worker."""
    skew_s, now, now_ns = float(os.environ["SKEW_S"]), time.time, time.time_ns
    time.time = lambda: now() + skew_s
    time.time_ns = lambda: now_ns() + int(skew_s * 1e9)
    from cli import main as orders

    orders(["worker"])


if __name__ == "__main__":
    main()
