"""The statistics of a comparison, held against scikit-learn and scipy, and on the published test."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from test_evaluation import prediction, predictions

from pipeline.causal.files import Choice, write
from pipeline.causal.rows_file import read_rows
from pipeline.errors import StageFailed, UserError
from pipeline.evaluation.baselines import baselines
from pipeline.evaluation.compare import compare, fail_for_refused
from pipeline.evaluation.labels import exact_labels, parsed, published_test, released_labels
from pipeline.evaluation.metrics import Answer, bootstrap, calibration, classification, mcnemar
from pipeline.evaluation.predictions import (
    Prediction,
    read_all,
    read_predictions,
    says_nothing,
    write_predictions,
)
from pipeline.evaluation.schema import SOLVER
from pipeline.evaluation.summary import result_table

ANSWERS: list[Answer | None] = ["yes", "no", None]


@pytest.fixture(scope="session")
def released(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Choice], list[Prediction]]:
    """Test rows of a published data set, as rows of a prediction file that answers nothing."""

    def rows(choice: Choice) -> list[Prediction]:
        folder = tmp_path_factory.mktemp("released")
        write(folder, choice)
        (folder / "train.csv").unlink()  # hundreds of megabytes that nothing here reads
        return [_row(index, record) for index, record in enumerate(read_rows(folder / "test.csv"))]

    return rows


def _row(index: int, record: dict[str, str]) -> Prediction:
    premise, _, hypothesis = record["input"].removeprefix("Premise:").partition("\nHypothesis:")
    return prediction(
        index, None, int(record["label"] == "1"), premise_id=premise.strip(), hypothesis=hypothesis.strip(),
        template=record["template"], num_variables=int(record["num_variables"]),
    )  # fmt: skip


@pytest.fixture(scope="session")
def test_v2(released: Callable[[Choice], list[Prediction]]) -> list[Prediction]:
    return released(Choice())


@pytest.mark.parametrize("kinds", [2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_metrics_agree_with_scikit_learn(seed: int, kinds: int) -> None:
    from sklearn.metrics import balanced_accuracy_score, f1_score, matthews_corrcoef, precision_score, recall_score

    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, 200)
    said = rng.integers(0, kinds, 200)  # 2 stands for no answer
    found = classification([ANSWERS[1 - k] if k < 2 else None for k in said.tolist()], labels.tolist())
    assert found["mcc"] == pytest.approx(matthews_corrcoef(labels, said))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the answer "none" is no label
        assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, said))
    yes = said == 1
    assert found["f1"] == pytest.approx(f1_score(labels, yes))
    assert found["precision"] == pytest.approx(precision_score(labels, yes))
    assert found["recall"] == pytest.approx(recall_score(labels, yes))
    assert found["accuracy"] == pytest.approx(np.mean(said == labels))


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("label", [0, 1])
def test_one_answer_or_one_label_only_has_numbers(answer: Answer | None, label: int) -> None:
    found = classification([answer] * 5, [label] * 5)
    assert found["mcc"] == 0.0
    assert found["balanced_accuracy"] == found["accuracy"] == float(answer == ("yes" if label else "no"))


@pytest.mark.parametrize(("fixed", "broken"), [(0, 0), (1, 0), (3, 9), (9, 3), (40, 20), (511, 600), (0, 1200)])
def test_mcnemar_agrees_with_scipy(fixed: int, broken: int) -> None:
    from scipy.stats import binomtest

    exact = binomtest(fixed, fixed + broken, 0.5).pvalue if fixed + broken else 1.0
    assert mcnemar(fixed, broken) == pytest.approx(exact)


def test_calibration_agrees_with_scikit_learn() -> None:
    from sklearn.calibration import calibration_curve
    from sklearn.metrics import brier_score_loss

    rng = np.random.default_rng(0)
    p = np.concatenate([rng.random(400), [0.0, 1.0]])
    labels = (rng.random(402) < p**2).astype(int)
    brier, ece = calibration(p.tolist(), labels.tolist())
    true, mean = calibration_curve(labels, p, n_bins=10, strategy="uniform")
    rows = np.histogram(p, bins=10, range=(0, 1))[0]
    assert brier == pytest.approx(brier_score_loss(labels, p))
    assert ece == pytest.approx(np.sum(rows[rows > 0] * np.abs(true - mean)) / 402)
    assert calibration([1.0, 0.0, 1.0], [1, 0, 1]) == (0.0, 0.0)


def test_intervals_cover_what_they_promise() -> None:
    """Of samples of 60 premises whose rows agree with each other, about 95 in 100 intervals hold the true accuracy."""
    rng = np.random.default_rng(5)
    covered = 0
    for trial in range(200):
        right = np.repeat(rng.random(60) < 0.7, 5)
        answers: list[Answer | None] = ["yes" if each else "no" for each in right.tolist()]
        premises = [str(i // 5) for i in range(300)]
        found = bootstrap(answers, [1] * 300, premises, 400, trial)["accuracy"]
        covered += found.low <= 0.7 <= found.high
    assert 0.88 <= covered / 200 <= 0.99


def test_bootstrap_agrees_with_scipy() -> None:
    """The interval of accuracy over premises of equal size is scipy's percentile interval of the mean."""
    from scipy.stats import bootstrap as reference

    rng = np.random.default_rng(7)
    right = rng.random((80, 4)) < rng.random((80, 1))
    answers: list[Answer | None] = ["yes" if each else "no" for each in right.reshape(-1).tolist()]
    found = bootstrap(answers, [1] * 320, [str(i // 4) for i in range(320)], 20000, 0)["accuracy"]
    other = reference((right.mean(axis=1),), np.mean, n_resamples=20000, method="percentile", rng=rng)
    assert (found.low, found.high) == pytest.approx(
        tuple(other.confidence_interval), abs=1 / 320 + 1e-9
    )  # one row more or less


def test_the_published_test_has_its_known_baselines(test_v2: list[Prediction]) -> None:
    comparison = compare({"base": predictions("base", [_answered(row, "yes") for row in test_v2])}, [], "t", 200, 1)
    found = {name: round(100 * each.f1, 2) for name, each in comparison.baselines.items()}
    assert (found["template"], found["pair"], found[SOLVER]) == (45.50, 52.33, 95.16)
    assert (found["always_yes"], found["majority"]) == (26.83, 0.0)
    assert round(100 * comparison.baselines["majority"].accuracy, 2) == 84.51
    assert comparison.data["published_test"] == "v2"
    assert comparison.data["premises"] == 21
    model = comparison.models["base"]
    assert list(model.by_num_variables) == ["2", "3", "4", "5", "6"]
    assert sum(part.rows for part in model.by_template.values()) == 1162
    assert model.label_versions is not None
    assert model.label_versions.differ == 18
    assert (model.label_versions.released.valid, model.label_versions.corrected.valid) == (180, 192)
    assert model.label_versions.released.f1 == model.f1
    output = io.StringIO()
    Console(file=output, width=80).print(result_table(comparison))
    assert "exact solver" in output.getvalue() and "0.952" in output.getvalue()
    assert max(map(len, output.getvalue().splitlines())) <= 80


@pytest.mark.parametrize(
    ("choice", "name", "ceiling"),
    [
        (Choice(version="v1"), "v1", 94.75),
        (Choice(version="v1", config="perturbation_by_paraphrasing"), "paraphrase", 94.75),
        (Choice(version="v1", config="perturbation_by_refactorization"), "refactorization", 94.75),
        (Choice(labels="corrected"), None, 100.0),
    ],
)
def test_published_tests_are_told_apart(
    released: Callable[[Choice], list[Prediction]], choice: Choice, name: str | None, ceiling: float
) -> None:
    rows = released(choice)
    assert published_test(rows[::-1]) == name
    read = parsed(rows)
    assert read is not None
    exact = exact_labels(read)
    assert exact is not None
    numbers = classification(["yes" if each else "no" for each in exact], [row.label for row in rows])
    assert round(100 * numbers["f1"], 2) == ceiling
    if name == "v1":
        shortcuts = {key: round(100 * each["f1"], 2) for key, each in baselines(rows).items()}
        assert (shortcuts["always_yes"], shortcuts["template"], shortcuts["pair"]) == (26.43, 34.13, 39.37)


def test_other_rows_are_no_published_test(test_v2: list[Prediction]) -> None:
    wrong = test_v2[3].model_copy(update={"label": 1 - test_v2[3].label})
    assert published_test([*test_v2[:3], wrong, *test_v2[4:]]) is None
    assert published_test([*test_v2[:-1], test_v2[0]]) is None
    assert published_test(test_v2[:640]) is None
    some = parsed(test_v2[:640])
    assert some is not None
    assert released_labels(some) == [row.label for row in test_v2[:640]]
    strange = [row.model_copy(update={"premise_id": "All is well."}) for row in test_v2[:3]]
    assert parsed(strange) is None
    told = compare({"base": predictions("base", [_answered(row, "no") for row in strange])}, [], "t", 50, 1)
    assert SOLVER not in told.baselines and told.models["base"].label_versions is None


def _answered(row: Prediction, answer: Answer | None, **changes: object) -> Prediction:
    return row.model_copy(update={"answer": answer, "correct": answer == ("yes" if row.label else "no"), **changes})


def test_a_pair_of_models_is_compared_row_by_row(test_v2: list[Prediction]) -> None:
    before = [_answered(row, "yes" if row.row % 2 else "no") for row in test_v2]
    after = [_answered(row, "yes" if row.label else "no") if row.row % 3 else one
             for row, one in zip(test_v2, before, strict=True)]  # fmt: skip
    after[4] = _answered(test_v2[4], "no" if test_v2[4].label else "yes")
    before[4] = _answered(test_v2[4], "yes" if test_v2[4].label else "no")
    found = compare({"base": predictions("base", before), "sft": predictions("sft", after)}, ["sft"], "t", 400, 1)
    paired = found.paired["sft-base"]
    changed = [(a.correct, b.correct) for a, b in zip(after, before, strict=True)]
    assert (paired.fixed, paired.broken) == (changed.count((True, False)), changed.count((False, True)))
    assert paired.broken == 1 and paired.verdict == "better" and paired.mcnemar_p < 1e-6
    assert paired.f1 == found.differences["sft-base"]
    same = compare({"base": predictions("base", before), "sft": predictions("sft", before)}, ["sft"], "t", 400, 1)
    assert same.paired["sft-base"].verdict == "not distinguishable from zero"
    assert same.paired["sft-base"].mcnemar_p == 1.0


def test_a_gain_on_one_premise_is_no_improvement() -> None:
    """Forty rows of one premise are fixed: McNemar's test is sure of it, the draws of premises are not."""
    before = [prediction(i, "no", 1, premise_id=str(i // 40)) for i in range(160)]
    after = [_answered(row, "yes") if row.row < 40 else row for row in before]
    found = compare({"base": predictions("base", before), "sft": predictions("sft", after)}, ["sft"], "t", 1000, 1)
    paired = found.paired["sft-base"]
    assert paired.mcnemar_p < 1e-9
    assert paired.f1.covers_zero and paired.verdict == "not distinguishable from zero"


def test_probabilities_are_calibrated_over_the_rows_that_have_one() -> None:
    rows = [prediction(0, "yes", 1, p_yes=0.9), prediction(1, "no", 0, p_yes=0.2), prediction(2, None, 1)]
    found = compare({"base": predictions("base", rows)}, [], "t", 50, 1).models["base"]
    assert found.calibration is not None
    assert found.calibration.rows == 2
    assert found.calibration.brier == pytest.approx((0.01 + 0.04) / 2)
    assert found.unparsable_share == pytest.approx(1 / 3)


@pytest.mark.parametrize("text", ["", " \n", "!!!!!!", "<pad><pad>", "<|endoftext|>", "[PAD] [PAD]", "... - - ;;", "​"])
def test_padding_says_nothing(text: str) -> None:
    assert says_nothing(text)


@pytest.mark.parametrize("text", ["No", "<pad>Yes", "是", "A > B", "<think>well", "1"])
def test_words_say_something(text: str) -> None:
    assert not says_nothing(text)


def test_a_model_that_only_pads_is_named_and_not_counted(tmp_path: Path) -> None:
    silent = predictions("sft", [prediction(i, None, i % 2, completion="<pad>" * 9) for i in range(6)])
    talks = predictions("base", [prediction(i, "yes", i % 2) for i in range(6)])
    found = compare({"base": talks, "sft": silent}, ["sft"], "t", 50, 1)
    assert list(found.models) == ["base"] and not found.differences
    for part in ("sft only produces padding", "'<pad><pad>", "in m", "->"):
        assert part in found.refused["sft"]
    with pytest.raises(UserError, match="only produces padding"):
        compare({"sft": silent}, ["sft"], "t", 50, 1)


def test_a_refused_model_fails_its_evaluation() -> None:
    silent = predictions("sft", [prediction(i, None, i % 2, completion="") for i in range(6)])
    talks = predictions("base", [prediction(i, "yes", i % 2) for i in range(6)])
    found = compare({"base": talks, "sft": silent}, ["sft"], "t", 50, 1)
    fail_for_refused(found, ["base"])
    with pytest.raises(StageFailed, match=r"sft only produces padding.* in m ->"):
        fail_for_refused(found, ["base", "sft"])


def test_files_that_do_not_fit_the_test_set_are_named(tmp_path: Path) -> None:
    """Of six prediction files one answers the test rows; the others are refused, each for its own reason."""
    rows = [prediction(i, "yes", i % 2) for i in range(4)]
    test = [{**row.model_dump(), "premise": row.premise_id} for row in rows]
    made = {
        "good": predictions("good", rows),
        "old": predictions("old", rows, data="d0"),
        "short": predictions("short", rows[:3]),
        "other": predictions("other", [*rows[:3], prediction(9, "yes", 1)]),
        "torn": predictions("torn", rows),
        "nan": predictions("nan", [row.model_copy(update={"p_yes": 0.5}) for row in rows]),
    }
    for name, each in made.items():
        write_predictions(tmp_path / f"{name}.jsonl", each)
    for name, old, new in (("torn", '{"id": "x/3"', '{"id": "x/3'), ("nan", '"p_yes": 0.5', '"p_yes": NaN')):
        path = tmp_path / f"{name}.jsonl"
        path.write_text(path.read_text().replace(old, new))
    found, refused = read_all(sorted(tmp_path.glob("*.jsonl")), test, "d1")
    assert list(found) == ["good"]
    for name, part in {
        "old": "another version of the data", "short": "1 of 4 test rows have no prediction", "torn": "is not JSON",
        "other": "1 of 4 test rows have no prediction", "nan": "a number that is not finite",
    }.items():  # fmt: skip
        assert part in refused[name] and f"in {tmp_path / name}.jsonl ->" in refused[name]
    comparison = compare(found, [], "t", 50, 1, refused)
    assert list(comparison.models) == ["good"] and set(comparison.refused) == set(refused)


@pytest.mark.parametrize("changes", [{"row": 0}, {"p_yes": 1.5}, {"p_yes": -0.1}])
def test_repeated_rows_and_impossible_probabilities_are_refused(tmp_path: Path, changes: dict[str, float]) -> None:
    rows = [prediction(0, "yes", 1), prediction(1, "yes", 1).model_copy(update=changes)]
    path = tmp_path / "p.jsonl"
    lines = [{"header": predictions("sft", rows).header.model_dump()}, *(row.model_dump() for row in rows)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(UserError, match=r"more than once|p_yes"):
        read_predictions(path)
