"""The verbs compare and gate: by their exit codes, their words, and the page in a real browser."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from test_cli import Project
from test_evaluation import prediction, predictions
from test_report import browse
from test_slurm_dag import copy_project

from pipeline.errors import NeedsMissing, StageFailed, UserError
from pipeline.evaluation.compare import compare, write_comparison
from pipeline.evaluation.gate import fail_unless_held, gate
from pipeline.evaluation.metrics import Answer
from pipeline.evaluation.predictions import Prediction, write_predictions
from pipeline.evaluation.provenance import flatten
from pipeline.evaluation.runs import side_by_side
from pipeline.evaluation.runs_page import write_page
from pipeline.load import load_recipe, recipe_file
from pipeline.run import HOME, RunDir

ROWS = 90


def rows(wrong_every: int, *, turned: bool = False) -> list[Prediction]:
    """Right answers to 90 rows on 30 premises but for every so manieth; `turned`: other ids, the order reversed."""
    made = []
    for i in range(ROWS):
        label = i % 2
        said: list[Answer] = ["no", "yes"]
        answer = said[label if (i + 1) % wrong_every else 1 - label]
        made.append(prediction(i, answer, label, premise_id=f"premise {i // 3}", hypothesis=f"claim {i % 3}"))
    if not turned:
        return made
    return [row.model_copy(update={"row": i, "id": f"y/{i}"}) for i, row in enumerate(reversed(made))]


def launched(root: Path, name: str, overrides: Sequence[str] = ()) -> RunDir:
    run = RunDir(root, name)
    run.write_resolved(load_recipe(recipe_file(HOME, "smoke"), list(overrides)), {"via": "local"})
    return run


def finished(
    root: Path, name: str, sft: list[Prediction], base: list[Prediction], overrides: Sequence[str] = ()
) -> RunDir:
    """A run with the predictions of a base model and of SFT."""
    run = launched(root, name, overrides)
    models = {"base": predictions("base", base, data=name), "sft": predictions("sft", sft, data=name)}
    for model, each in models.items():
        write_predictions(run.predictions(model), each)
    comparison = compare(models, ["sft", "grpo"], "corr2cause", 300, 1)
    write_comparison(run.comparison, comparison.model_copy(update={"run": name}))
    return run


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs: good, the same rows worse, the same rows as good but asked in another order, other rows, unfinished."""
    root = tmp_path_factory.mktemp("runs")
    finished(root, "good", rows(10), rows(2))
    finished(root, "worse", rows(3), rows(2), ["sft.learning_rate=0.0021"])
    finished(root, "turned", rows(10, turned=True), rows(2, turned=True))
    other = [row.model_copy(update={"hypothesis": "another claim " + row.hypothesis}) for row in rows(4)]
    finished(root, "other", other, other)
    launched(root, "unfinished")
    return root


def held(
    root: Path, name: str, minima: Sequence[str], base: str | None = None, model: str | None = "sft"
) -> list[bool]:
    return [check.holds for check in gate(RunDir(root, name), minima, base, model, lambda other: RunDir(root, other))]


def test_bounds_hold_or_not(root: Path) -> None:
    assert held(root, "good", ["f1=0.6", "accuracy=0.9", "mcc=0.5", "f1.low=0.5"]) == [True] * 4
    assert held(root, "good", ["f1=0.95", "recall=0.1"]) == [False, True]
    checks = gate(RunDir(root, "good"), ["f1=0.95", "recall=0.1"], None, "sft", lambda other: RunDir(root, other))
    with pytest.raises(StageFailed, match=r"sft f1 0\.8889, at least 0\.95 asked for' in run good ->") as failed:
        fail_unless_held(checks, "run good")
    assert failed.value.exit_code == 1 and "recall" not in str(failed.value)


def test_a_regression_is_one_whose_interval_lies_below_zero(root: Path) -> None:
    assert held(root, "good", [], "base") == [True]
    assert held(root, "good", [], "worse") == [True]
    assert held(root, "worse", [], "good") == [False]
    assert held(root, "turned", [], "good") == [True]  # the same questions in another order, to the same answers
    check = gate(RunDir(root, "turned"), [], "good", "sft", lambda other: RunDir(root, other))[0]
    assert "turned sft - good sft: +0.000 [+0.000, +0.000]: not distinguishable" in check.text


@pytest.mark.parametrize(
    ("name", "minima", "base", "model", "error", "part"),
    [
        ("good", ["f2=0.5"], None, None, UserError, "f2.*--min.*valid: accuracy"),
        ("good", ["f1=many"], None, None, UserError, "'many' in --min f1"),
        ("good", ["f1=nan"], None, None, UserError, "'nan' in --min f1"),
        ("good", [], None, None, UserError, "without anything to hold"),
        ("good", ["f1=0.5"], None, "stf", UserError, "no such model.*did you mean 'sft'"),
        ("good", [], "other", "sft", UserError, "asked different test rows.*share: 0"),
        ("good", [], "unfinished", "sft", NeedsMissing, "no result.*unfinished"),
        ("unfinished", ["f1=0.5"], None, None, NeedsMissing, "no result"),
    ],
)
def test_what_cannot_be_held_is_named(
    root: Path, name: str, minima: list[str], base: str | None, model: str | None, error: type[Exception], part: str
) -> None:
    with pytest.raises(error, match=part):
        held(root, name, minima, base, model)


def test_runs_are_grouped_by_the_rows_they_were_asked(root: Path) -> None:
    found = side_by_side([RunDir(root, name) for name in ("good", "worse", "other", "unfinished", "turned")])
    assert [[side.run.name for side in each.sides] for each in found.sets] == [["good", "worse", "turned"], ["other"]]
    assert [each.verdict for each in found.sets[0].paired] == ["worse", "not distinguishable from zero"]
    assert list(found.missing) == ["unfinished"]
    assert found.settings["sft.learning_rate"][1] == "0.0021"
    assert "recipe" not in found.settings and len(found.settings) == 1
    with pytest.raises(NeedsMissing, match="none of these runs"):
        side_by_side([RunDir(root, "unfinished")])


def test_settings_are_flattened_to_their_leaves() -> None:
    assert flatten({"a": {"b": 1, "c": {}}, "d": [1, 2]}) == {"a.b": "1", "a.c": "{}", "d": "[1, 2]"}


def test_a_browser_renders_the_page_of_runs(root: Path, tmp_path: Path) -> None:
    page = tmp_path / "compare.html"
    write_page(side_by_side([RunDir(root, name) for name in ("good", "worse", "other", "unfinished")]), page)
    shown, told = browse(page, tmp_path / "profile", width=500)
    for part in ("good sft", "worse base", "2 different sets of test rows", "unfinished: no comparison yet", "0.0021"):
        assert part in shown, part
    assert "CONSOLE" not in told


def test_the_verbs_end_with_their_codes(root: Path, tmp_path: Path) -> None:
    home = copy_project(tmp_path / "project")
    (home / "configs" / "cluster.yaml").write_text(f"output_root: {root}\n", encoding="utf-8")
    project = Project(home)
    told = project.works("gate", "good", "--model", "sft", "--min", "f1=0.6", "--no-regression", "worse")
    assert told.count("holds  ") == 2
    code, out, err = project.call("gate", "worse", "--model", "sft", "--min", "f1=0.6", "--no-regression", "good")
    assert code == 1 and "holds  sft f1" in out and "FAILS  F1 worse sft - good sft" in out
    assert err.startswith("error: the gate does not hold: 'F1 worse sft") and len(err.splitlines()) == 1
    project.refuses("gate", "good", "--min", "nonsense=1")
    project.refuses("gate", "unfinished", "--min", "f1=0.5", code=3)
    project.refuses("compare", "good", "wrose")
    told = project.works("compare", "good", "worse", "--out", str(tmp_path / "page.html"))
    assert "F1 worse sft - good sft" in told and "sft.learning_rate: good " in told
    assert (tmp_path / "page.html").is_file()
