"""The whole pipeline on published questions: preprocess, SFT, GRPO and evaluation, for answers and for programs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.evaluation.schema import read_comparison
from pipeline.load import build_recipe
from pipeline.run import HOME, RunDir
from pipeline.settings import merge, read_yaml
from pipeline.stages.rows import read_rows

pytestmark = pytest.mark.training

SUMS = [{"question": f"{n} + 1", "answer": f"{n} + 1 = {n + 1}\n#### {n + 1}"} for n in range(60)]
PROGRAMS = [
    {
        "task_id": n,
        "prompt": f"Write a function that adds {n}.",
        "code": f"def add(x):\n    return x + {n}",
        "test_imports": [],
        "test_list": [f"assert add({x}) == {x + n}" for x in (0, 1)],
    }
    for n in range(40)
]
MATH = {
    "task": "gsm8k",
    "data": {"template": "math_hash"},
    "grpo": {
        "reward": {
            "type": "weighted",
            "parts": [{"type": "math_correctness"}, {"type": "format", "weight": 0.5}, {"type": "length_penalty"}],
        }
    },
}
CODE = {
    "task": "mbpp",
    "data": {"parts": {"sft": {"task": "codealpaca"}}},
    "grpo": {"reward": {"type": "code_execution", "partial_credit": True}},
    "evaluate": {"samples": 3, "temperature": 1.0},
}


def prepare(root: Path, change: dict[str, Any], rows: list[dict[str, Any]]) -> RunDir:
    """A run of configs/smoke.yaml with another task, its rows in a file."""
    source = root / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    tree = read_yaml(HOME / "configs" / "smoke.yaml")
    tree["data"] = {"source": str(source), "rows": {"dev": 4, "test": 4}}
    tree = merge(tree, change)
    if "parts" in tree["data"]:
        learned = root / "learned.json"
        learned.write_text(json.dumps([{"instruction": f"say {n}", "output": f"print({n})"} for n in range(40)]))
        tree["data"]["parts"]["sft"]["source"] = str(learned)
    run = RunDir(root, "r")
    run.write_resolved(build_recipe("smoke", tree, "smoke.yaml"), {})
    return run


def stages(run: RunDir) -> None:
    """Run all four, each in a process of its own."""
    for stage in ("preprocess", "sft", "grpo", "evaluate"):
        command = [sys.executable, "-m", f"pipeline.stages.{stage}", str(run.logs), stage]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HOME), "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(command, cwd=HOME, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{stage}: {done.stdout[-2000:]}{done.stderr[-3000:]}"


def test_questions_with_answers(tmp_path: Path) -> None:
    run = prepare(tmp_path, MATH, SUMS)
    stages(run)
    steps = [line for line in run.read_metrics("grpo") if "reward" in line]
    parts = {"rewards/math_correctness/mean", "rewards/format/mean", "rewards/length_penalty/mean"}
    assert steps and all(parts <= line.keys() for line in steps)
    assert any("dev_accuracy" in line for line in run.read_metrics("grpo"))
    assert any("best_dev_accuracy" in line for line in run.read_metrics("grpo"))
    assert {"before_reward", "after_reward"} <= run.read_metrics("grpo")[-1].keys()
    comparison = read_comparison(run.comparison)
    assert comparison is not None and not comparison.models
    assert next(iter(comparison.solved)) == "base" or "base" in comparison.refused
    assert {"sft", "grpo"} <= {*comparison.solved, *comparison.refused}
    page = run.report.read_text(encoding="utf-8")
    assert "test rows of gsm8k" in page and "There is no comparison yet" not in page


def test_programs(tmp_path: Path) -> None:
    run = prepare(tmp_path, CODE, PROGRAMS)
    stages(run)
    data = next(path for path in run.results.parent.parent.rglob("test.jsonl") if "processed" in path.parts)
    assert {row["task"] for row in read_rows(data)} == {"mbpp"}
    assert any("rewards/code_execution/mean" in line for line in run.read_metrics("grpo"))
    comparison = read_comparison(run.comparison)
    assert comparison is not None
    assert all(set(result.pass_at) == {"1", "2", "3"} for result in comparison.solved.values())
    lines = run.predictions("sft").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 5 and len(json.loads(lines[1])["answers"]) == 3
