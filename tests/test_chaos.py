"""The chaos suite, short: a few rounds of a fixed seed; scripts/chaos.sh plays more."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from cluster import unavailable
from conftest import NO_SLURM

HOME = Path(__file__).parent.parent
SEED = 5
ROUNDS = 2

pytestmark = [pytest.mark.slurm, pytest.mark.training]


def test_a_broken_run_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    reason = unavailable()
    if reason:
        pytest.skip(NO_SLURM + reason)
    results = tmp_path / "chaos.jsonl"
    words = ["--rounds", str(ROUNDS), "--seed", str(SEED), "--results", str(results)]
    done = subprocess.run(
        [sys.executable, "scripts/chaos.py", *words], cwd=HOME, capture_output=True, text=True, check=False
    )
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line["outcome"] for line in lines] == ["same result"] * ROUNDS
    assert all(any(fault["did"] for fault in line["faults"]) for line in lines), "a fault came too late"
    assert sum(line["recoveries"] for line in lines) > 0
