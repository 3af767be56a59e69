"""The evaluate stage on real models: one whose weights are not finite is named, fails the stage and is not counted."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from serving import Server, completion

from pipeline import dag
from pipeline.errors import UserError
from pipeline.evaluation.schema import Comparison, read_comparison
from pipeline.evaluation.sets import published_rows
from pipeline.load import load_recipe, recipe_file
from pipeline.recipe_evaluate import Evaluate
from pipeline.run import HOME, RunDir
from pipeline.stages.evaluate import test_sets as sets_of_run
from pipeline.stages.preprocess import TRAINED

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


def evaluated(run: RunDir, *overrides: str) -> Comparison:
    """The comparison when the stage has run again with these settings."""
    recipe, extra = run.read_resolved()
    run.write_resolved(load_recipe(recipe_file(HOME, "smoke"), [*SHORT, *overrides]), extra)
    done = stage(run, "evaluate", "--model", str(run.model("base")), "--name", "first")
    run.write_resolved(recipe, extra)
    assert done.returncode == 0, done.stderr
    found = read_comparison(run.comparison)
    assert found is not None
    return found


@pytest.mark.training
def test_answers_are_scored_on_further_sets(run: RunDir) -> None:
    sets = ["corrected", "refactorized", "variables-7"]
    overrides = ["evaluate.mode=answer", f"evaluate.sets=[{','.join(sets)}]", "evaluate.set_rows=30"]
    found = evaluated(run, *overrides)
    assert list(found.sets) == sets
    assert [each.data["rows"] for each in found.sets.values()] == [1162, 2246, 30]
    assert found.sets["refactorized"].data["published_test"] == "refactorization"
    assert found.sets["corrected"].baselines["solver"].f1 == 1.0
    assert found.sets["variables-7"].data["num_variables"] == [7]
    for each in (found, *found.sets.values()):
        result = each.models["first"]
        assert result.calibration is not None and result.calibration.rows == each.data["rows"]
        assert result.unparsable == 0 and len(each.baselines) > 5
    assert "Test set refactorized" in run.report.read_text(encoding="utf-8")
    before = {path: path.read_bytes() for path in run.prediction_files("corrected")}
    assert evaluated(run, *overrides).sets["corrected"] and before == {path: path.read_bytes() for path in before}


@pytest.mark.training
def test_rows_of_trained_classes_are_left_out(run: RunDir) -> None:
    recipe, _ = run.read_resolved()
    path = dag.dataset_of(recipe, run) / TRAINED
    trained = path.read_text(encoding="utf-8")
    own = Evaluate(sets=["corrected"])
    assert json.loads(trained)
    assert len(sets_of_run(recipe, run, own)[1].rows) == 1162
    path.write_text(json.dumps([row.mec for row in published_rows("corrected")[:1]]), encoding="utf-8")
    some = sets_of_run(recipe, run, own)[1]
    path.write_text(json.dumps([row.mec for row in published_rows("corrected")]), encoding="utf-8")
    with pytest.raises(UserError, match="training had every class of a test set: 'corrected'"):
        sets_of_run(recipe, run, own)
    path.write_text(trained, encoding="utf-8")
    assert 0 < some.left_out < 1162 and len(some.rows) == 1162 - some.left_out


@pytest.mark.training
def test_weights_that_are_not_finite_have_no_probabilities(run: RunDir, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(run.model("base"), broken)
    for path in broken.glob("*.safetensors"):
        weights = {name: torch.full_like(each, torch.nan) for name, each in load_file(path).items()}
        save_file(weights, path, metadata={"format": "pt"})
    recipe, extra = run.read_resolved()
    run.write_resolved(load_recipe(recipe_file(HOME, "smoke"), [*SHORT, "evaluate.mode=answer"]), extra)
    done = stage(run, "evaluate", "--model", str(broken), "--name", "nan")
    run.write_resolved(recipe, extra)
    assert done.returncode == 1 and "no finite probability of Yes and No" in done.stderr
    found = read_comparison(run.comparison)
    assert found is not None and "nan" in found.refused and "nan" not in found.models


@pytest.mark.training
def test_a_server_stands_among_the_models_of_a_run(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Server(lambda text, before: (200, {}, completion("A causes B. Therefore: Yes")))
    code = f"import pipeline.cluster as c; c.output_root = lambda _: __import__('pathlib').Path({str(run.root)!r})\n"
    code += "import sys; from pipeline.cli import main; sys.exit(main(sys.argv[1:]))"
    words = ["evaluate", "--endpoint", server.url, "--model", "org/big", "--run-name", run.name, "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=HOME, env=environment, capture_output=True, text=True, check=False
    )
    server.close()
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    found = read_comparison(run.comparison)
    assert found is not None and told["model"] == "org_big"
    result = found.models["org_big"]
    assert (result.recall, result.rows, result.unparsable) == (1.0, 12, 0)
    assert len(json.loads(Path(told["predictions"]).read_text(encoding="utf-8"))["predictions"]) == 12
