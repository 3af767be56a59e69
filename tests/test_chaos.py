"""The short form of scripts/chaos.sh: two rounds of faults, and nothing lost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from cluster import unavailable
from conftest import NO_SLURM

from pipeline.run import HOME

pytestmark = [pytest.mark.slurm, pytest.mark.training]


def test_two_rounds_end_with_the_undisturbed_result(tmp_path: Path) -> None:
    reason = unavailable()
    if reason:
        pytest.skip(NO_SLURM + reason)
    record = tmp_path / "rounds.jsonl"
    words = ["--rounds", "2", "--seed", "1", "--record", str(record)]
    done = subprocess.run(
        [sys.executable, HOME / "scripts/chaos.py", *words], cwd=HOME, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rounds = [json.loads(line) for line in record.read_text(encoding="utf-8").splitlines()]
    assert [each["outcome"] for each in rounds] == ["same", "same"]
    assert any(each["faults"] for each in rounds)
    told = subprocess.run(
        [sys.executable, HOME / "scripts/chaos.py", "--summary", "--record", str(record)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "2 rounds, 2 with the undisturbed result" in told.stdout
