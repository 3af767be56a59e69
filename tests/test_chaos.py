"""The chaos suite, short: a round of a seed whose faults come early in their stages; scripts/chaos.sh plays more."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from cluster import unavailable
from conftest import NO_SLURM

HOME = Path(__file__).parent.parent


@pytest.mark.slurm
@pytest.mark.training
@pytest.mark.parametrize(("seed", "rounds"), [(2070, 1), pytest.param(5, 2, marks=pytest.mark.long)])
def test_a_broken_run_ends_as_an_undisturbed_one(tmp_path: Path, seed: int, rounds: int) -> None:
    reason = unavailable()
    if reason:
        pytest.skip(NO_SLURM + reason)
    results = tmp_path / "chaos.jsonl"
    words = ["--rounds", str(rounds), "--seed", str(seed), "--results", str(results)]
    done = subprocess.run(
        [sys.executable, "scripts/chaos.py", *words], cwd=HOME, capture_output=True, text=True, check=False
    )
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line["outcome"] for line in lines] == ["same result"] * rounds
    assert any(fault["did"] for line in lines for fault in line["faults"]), "all faults came too late"
    assert f"{rounds} rounds (seeds {seed}), {rounds} with the undisturbed result" in done.stdout


def test_the_report_counts_what_was_injected_in_time(tmp_path: Path) -> None:
    """A fault that came too late is no fault; a round that went wrong stands apart."""
    hit, late = {"kind": "preemption", "did": "by job 3"}, {"kind": "node dies", "did": ""}
    facts = {"seed": 3, "faults": [hit, late], "mended": [], "outcome": "same result", "recoveries": 1, "lost_steps": 2}
    wrong = {"outcome": "WRONG: jobs are left", "mended": ["retry: sft"], "faults": [hit, hit], "recoveries": 0}
    lines = [{**facts, "round": 1}, {**facts, "round": 2, "mended": ["retry: grpo"]}, {**facts, "round": 3, **wrong}]
    results = tmp_path / "chaos.jsonl"
    results.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    told = subprocess.run(
        [sys.executable, "scripts/chaos.py", "--report", "--results", str(results)],
        cwd=HOME, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert told.startswith(
        "3 rounds (seeds 3), 2 with the undisturbed result: 1 by themselves, 1 after `retry` or `run`; 4 faults, "
        "2 recoveries (attempts after a stage's first), 6 steps trained again.\n"
    )
    assert "| preemption | 4 | 3 | 1 | 1 | 1 | 6 |" in told and "node dies" not in told
    assert "Round 3 of seed 3: WRONG: jobs are left" in told
