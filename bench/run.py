"""All benchmarks, one after the other on brokers of their own: `make bench`. One JSON line per figure.

python -m bench.run [--records 1500000] [--rounds 3] [--rows 1000000]
"""

import argparse
import subprocess
import sys


def main() -> int:
    """Run each benchmark in a process of its own, so that none warms another up; non-zero when one fails."""
    parser = argparse.ArgumentParser(prog="python -m bench.run", description=__doc__)
    parser.add_argument("--records", type=int, default=1_500_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=1_000_000)
    arguments = parser.parse_args()
    benchmarks = (
        ("bench.orders_job", f"--records={arguments.records}", f"--rounds={arguments.rounds}"),
        ("bench.poison", f"--rounds={arguments.rounds}"),
        ("bench.latency",),
        ("bench.full_order",),
        ("bench.footprint",),
        ("bench.restore", f"--rows={arguments.rows}"),
        ("bench.reads",),
        ("bench.audit",),
        ("bench.metrics_cost",),
        ("bench.tracing",),
    )
    return max(subprocess.run([sys.executable, "-m", *command], check=False).returncode for command in benchmarks)


if __name__ == "__main__":
    raise SystemExit(main())
