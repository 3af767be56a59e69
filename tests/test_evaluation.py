"""Counting answers: metrics, intervals, baselines, comparison, prediction files, the result table."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from pipeline.errors import UserError
from pipeline.evaluation.baselines import baselines
from pipeline.evaluation.compare import compare, write_comparison
from pipeline.evaluation.metrics import Answer, bootstrap_f1, classification, difference_f1, f1_score
from pipeline.evaluation.predictions import (
    Header,
    Prediction,
    Predictions,
    check_against,
    read_predictions,
    write_predictions,
)
from pipeline.evaluation.schema import Interval, read_comparison
from pipeline.evaluation.summary import difference_lines, result_table

PREMISE = (
    "Suppose there is a closed system of 3 variables, A, B and C. All the statistical relations among these 3 variables"
    " are as follows: A correlates with B. B correlates with C. However, A is independent of C."
)


def prediction(row: int, answer: Answer | None, label: int, **changes: Any) -> Prediction:
    values: dict[str, Any] = {
        "id": f"x/{row}",
        "row": row,
        "prompt": "p",
        "completion": "c",
        "answer": answer,
        "label": label,
        "correct": answer == ("yes" if label else "no"),
        "premise_id": f"{PREMISE} #{row % 3}",
        "hypothesis": "A directly causes B.",
        "num_variables": 3,
        "template": "parent",
        "steps": [],
        "true_share": 0.5,
        "tokens": 4,
        "ended": True,
        **changes,
    }
    return Prediction(**values)


def predictions(name: str, rows: Sequence[Prediction], data: str = "d1") -> Predictions:
    header = Header(
        model="m", revision=None, model_fingerprint="f", recipe="r", run="r", stage=name, data_fingerprint=data, seed=1,
        created="2026-01-01", generation={}, versions={}, rows=len(rows),
    )  # fmt: skip
    return Predictions(header, list(rows))


def test_hand_counted_metrics() -> None:
    answers: list[Answer | None] = ["yes", "yes", "no", None, None, "no"]
    found = classification(answers, [1, 0, 1, 1, 0, 0])
    assert found["f1"] == pytest.approx(2 / 5)  # 1 true positive, 1 false positive, 2 missed
    assert found["precision"] == 0.5
    assert found["recall"] == pytest.approx(1 / 3)
    assert found["accuracy"] == pytest.approx(2 / 6)  # an unparsable answer is wrong whatever the label
    assert found["accuracy_published_rule"] == pytest.approx(3 / 6)  # there it counts as No
    assert found["unparsable"] == 2


def test_metrics_agree_with_scikit_learn() -> None:
    from sklearn.metrics import accuracy_score, precision_recall_fscore_support

    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 300).tolist()
    said = rng.integers(0, 2, 300).tolist()
    found = classification(["yes" if each else "no" for each in said], labels)
    precision, recall, f1, _ = precision_recall_fscore_support(labels, said, average="binary")
    assert (found["precision"], found["recall"], found["f1"]) == pytest.approx((precision, recall, f1))
    assert found["accuracy"] == pytest.approx(accuracy_score(labels, said))


@pytest.mark.parametrize("labels", [[0, 0, 0], [1, 1, 1]])
def test_degenerate_sets_have_numbers(labels: list[int]) -> None:
    assert f1_score([None] * 3, labels) == 0.0
    assert classification([None] * 3, labels)["accuracy"] == 0.0
    assert f1_score([], []) == 0.0


def test_the_interval_draws_whole_premises() -> None:
    """Ten copies of each row under one premise must not narrow the interval; under ten premises they must."""
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, 60).tolist()
    answers: list[Answer | None] = ["yes" if (each if rng.random() < 0.7 else 1 - each) else "no" for each in labels]
    premises = [str(i) for i in range(60)]
    once = bootstrap_f1(answers, labels, premises, 2000, 0)
    copied = bootstrap_f1(answers * 10, labels * 10, premises * 10, 2000, 0)
    spread = bootstrap_f1(answers * 10, labels * 10, [str(i) for i in range(600)], 2000, 0)
    assert copied == once
    assert spread.high - spread.low < 0.5 * (once.high - once.low)
    assert once.low < once.value < once.high
    assert bootstrap_f1(answers, labels, ["one"] * 60, 100, 0) == Interval(value=once.value, low=0.0, high=1.0)


def test_a_difference_is_paired() -> None:
    labels = [1, 0] * 30
    premises = [str(i // 2) for i in range(60)]
    good: list[Answer | None] = ["yes", "no"] * 30
    weak: list[Answer | None] = ["yes", "yes"] * 30
    same = difference_f1(good, good, labels, premises, 500, 0)
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)
    better = difference_f1(good, weak, labels, premises, 500, 0)
    assert better.value == pytest.approx(1 - 2 / 3)
    assert better.low > 0 and better.verdict == "better"
    assert difference_f1(weak, good, labels, premises, 500, 0).verdict == "worse"
    assert same.verdict == "not distinguishable from zero"


def test_baselines_are_counted_on_the_rows() -> None:
    rows = [
        prediction(0, None, 1),  # A directly causes B: never stated independent
        prediction(1, None, 0, hypothesis="A directly causes C."),  # stated independent
        prediction(2, None, 1, hypothesis="C directly causes B.", template="child"),
        prediction(3, None, 0, hypothesis="x collider", template="has_collider"),
        prediction(4, None, 0, hypothesis="x", template="has_confounder"),
    ]
    found = baselines(rows)
    assert found["always_yes"]["f1"] == pytest.approx(4 / 7)
    assert found["majority"]["f1"] == 0.0 and found["majority"]["accuracy"] == 0.6
    assert found["template"]["precision"] == pytest.approx(1 / 3)
    assert found["pair"]["precision"] == pytest.approx(1 / 2)
    assert found["pair_either"] == {
        "f1": 0.8, "precision": pytest.approx(2 / 3), "recall": 1.0, "accuracy": 0.8,
        "balanced_accuracy": pytest.approx((1 + 2 / 3) / 2), "mcc": pytest.approx(2 / 3),
    }  # fmt: skip


def test_the_comparison_has_the_promised_shape(tmp_path: Path) -> None:
    labels = [1, 0, 1, 0, 1, 0]
    models = {
        "grpo": predictions("grpo", [prediction(i, "yes" if label else "no", label) for i, label in enumerate(labels)]),
        "sft": predictions("sft", [prediction(i, "yes", label) for i, label in enumerate(labels)]),
        "base": predictions("base", [prediction(i, None, label) for i, label in enumerate(labels)]),
    }
    comparison = compare(models, ["sft", "grpo"], "corr2cause", 200, 1)
    path = tmp_path / "comparison.json"
    write_comparison(path, comparison)
    written = json.loads(path.read_text())
    assert list(written["models"]) == ["base", "sft", "grpo"]
    assert written["run"] == "r"
    assert set(written["models"]["grpo"]["f1"]) == {"value", "low", "high"}
    assert written["models"]["grpo"]["f1"]["value"] == 1.0
    assert written["models"]["base"]["unparsable"] == 6
    assert written["models"]["sft"] | {"rows": 6, "precision": 0.5, "recall": 1.0} == written["models"]["sft"]
    assert written["baselines"]["always_yes"]["f1"] == pytest.approx(2 / 3)
    assert list(written["differences"]) == ["sft-base", "grpo-sft", "grpo-base"]
    assert read_comparison(path) == comparison

    output = io.StringIO()
    Console(file=output, width=80).print(result_table(comparison))
    table = output.getvalue()
    assert "grpo" in table and "1.000 [1.000, 1.000]" in table and "always yes" in table
    assert max(map(len, table.splitlines())) <= 80
    assert difference_lines(comparison)[1].startswith("F1 grpo - sft: +0.333")
    assert "3 rows fixed, 0 broken (McNemar p 0.25)" in difference_lines(comparison)[1]


def test_models_that_were_asked_different_rows_are_not_compared() -> None:
    one = predictions("base", [prediction(0, "yes", 1)])
    with pytest.raises(UserError, match="different data versions"):
        compare({"base": one, "sft": predictions("sft", [prediction(0, "yes", 1)], data="d2")}, ["sft"], "t", 10, 1)
    with pytest.raises(UserError):
        compare({"base": one, "sft": predictions("sft", [prediction(1, "yes", 1)])}, ["sft"], "t", 10, 1)


def test_prediction_files_round_trip(tmp_path: Path) -> None:
    made = predictions("sft", [prediction(0, "yes", 1, completion="a\u2028b\n"), prediction(1, None, 0)])
    write_predictions(tmp_path / "p.jsonl", made)
    assert read_predictions(tmp_path / "p.jsonl") == made


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda lines: lines[:-1], "2 rows are promised by the header"),
        (lambda lines: [*lines[:-1], lines[1]], "stand more than once"),
        (lambda lines: lines[1:], "begins with its header"),
        (lambda lines: [*lines[:-1], lines[-1][:30]], "is not JSON"),
        (lambda lines: [line.replace('"true_share": 0.5', '"true_share": NaN') for line in lines], "not finite"),
        (lambda lines: [line.replace('"correct": true', '"correct": false') for line in lines], "contradicts itself"),
        (lambda lines: [line.replace('"label": 0', '"label": 2') for line in lines], "row 1"),
    ],
)
def test_broken_prediction_files_are_refused(tmp_path: Path, change: Any, part: str) -> None:
    path = tmp_path / "p.jsonl"
    write_predictions(path, predictions("sft", [prediction(0, "yes", 1), prediction(1, None, 0)]))
    path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")
    with pytest.raises(UserError, match=part):
        read_predictions(path)


def test_predictions_of_other_rows_are_refused() -> None:
    made = predictions("sft", [prediction(0, "yes", 1), prediction(1, None, 0)])
    rows = [{**row.model_dump(), "premise": row.premise_id} for row in made.rows]
    check_against(made, rows, "d1", Path("p"))
    for changed, fingerprint, part in [
        (rows, "d2", "another version of the data"),
        ([*rows, {**rows[0], "id": "x/9"}], "d1", "have no prediction"),
        (rows[:1], "d1", "not in the test set"),
        (rows[::-1], "d1", "another order"),
        ([{**rows[0], "label": 0}, rows[1]], "d1", "differs from the test set in label"),
    ]:
        with pytest.raises(UserError, match=part):
            check_against(made, changed, fingerprint, Path("p"))
