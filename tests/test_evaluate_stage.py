"""The evaluate stage on real models: one whose weights are not finite is named, fails the stage and is not counted."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.evaluation.schema import read_comparison
from pipeline.load import load_recipe, recipe_file
from pipeline.run import HOME, RunDir

SHORT = ["data.rows.sft=8", "data.rows.grpo=8", "data.rows.dev=4", "data.rows.test=12"]


def stage(run: RunDir, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"pipeline.stages.{words[0]}", str(run.logs), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HOME)}
    return subprocess.run(command, cwd=HOME, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run whose rows and scratch model are there, that model evaluated as `first`."""
    run = RunDir(tmp_path_factory.mktemp("evaluated"), "r")
    run.write_resolved(load_recipe(recipe_file(HOME, "smoke"), SHORT), {})
    for words in (["preprocess"], ["evaluate", "--model", str(run.model("base")), "--name", "first"]):
        done = stage(run, *words)
        assert done.returncode == 0, done.stderr
    return run


@pytest.mark.training
def test_a_model_that_is_not_finite_is_named_and_not_counted(run: RunDir, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(run.model("base"), broken)
    for path in broken.glob("*.safetensors"):
        weights = {name: torch.full_like(each, torch.nan) for name, each in load_file(path).items()}
        save_file(weights, path, metadata={"format": "pt"})
    done = stage(run, "evaluate", "--model", str(broken), "--name", "broken")
    assert done.returncode == 1
    assert f"the model broken only produces padding, in all of 12 rows: '' in {broken} ->" in done.stderr
    comparison = read_comparison(run.comparison)
    assert comparison is not None
    assert list(comparison.models) == ["first"] and list(comparison.refused) == ["broken"]
    assert "not counted: broken" in run.report.read_text(encoding="utf-8")


@pytest.mark.training
def test_predictions_of_other_data_are_named_and_not_counted(run: RunDir) -> None:
    path = run.predictions("first")
    old = path.read_text(encoding="utf-8")
    stale = run.predictions("stale")
    comparison = read_comparison(run.comparison)
    assert comparison is not None
    fingerprint = str(comparison.data["fingerprint"])
    stale.write_text(old.replace(fingerprint, "0" * len(fingerprint)), encoding="utf-8")
    done = stage(run, "evaluate", "--model", str(run.model("base")), "--name", "first")
    assert done.returncode == 0, done.stderr
    comparison = read_comparison(run.comparison)
    assert comparison is not None
    assert "another version of the data" in comparison.refused["stale"] and "stale" not in comparison.models
    assert path.read_text(encoding="utf-8") == old
