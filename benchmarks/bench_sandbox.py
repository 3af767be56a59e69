"""Isolated runs a second: programs with their tests, a sandbox of its own for each.

    python benchmarks/bench_sandbox.py                 400 runs, as many at once as there are cores
    python benchmarks/bench_sandbox.py --runs 100 --workers 1

The first line is the bare start of the isolated Python, one after the other.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from pipeline.rewards.isolation import isolated_python
from pipeline.rewards.sandbox import Checks, Program, Sandbox

SOURCE = "from typing import List\n\ndef close(numbers: List[float], by: float) -> bool:\n    return by > 0.5\n"
CHECKS = Checks(
    "", {"candidate": "close"}, tuple((f"assert candidate([1.0, 2.0], {n}) == True", True) for n in (1, 2, 3))
)


def bare_starts(count: int) -> float:
    """Starts a second of the isolated Python that does nothing."""
    command = [*isolated_python(), "-c", "pass"]
    started = time.perf_counter()
    for _ in range(count):
        subprocess.run(command, cwd="/", stdin=subprocess.DEVNULL, check=True)
    return count / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=400)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    wanted = parser.parse_args()
    print(f"bare starts, one after the other: {bare_starts(40):.1f} a second (load {os.getloadavg()[0]:.1f})")
    sandbox = Sandbox(workers=wanted.workers)
    sandbox.run_all([(Program(SOURCE), CHECKS)] * wanted.workers)  # the tests' sandboxes start once
    started = time.perf_counter()
    outcomes = sandbox.run_all([(Program(SOURCE), CHECKS)] * wanted.runs)
    seconds = time.perf_counter() - started
    sandbox.close()
    assert all(all(outcome.passed) for outcome in outcomes)
    print(f"runs with tests, {wanted.workers} at once: {wanted.runs / seconds:.1f} a second")


if __name__ == "__main__":
    main()
