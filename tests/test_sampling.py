"""pass@k and maj@k against counting by hand, and several samples through the stage's own functions."""

from __future__ import annotations

from itertools import combinations

import pytest
from test_evaluation import prediction, predictions

from pipeline.errors import UserError, UserErrors
from pipeline.evaluation.ask import judge_all
from pipeline.evaluation.compare import compare
from pipeline.evaluation.generate import Completion
from pipeline.evaluation.metrics import Answer, mean_interval
from pipeline.evaluation.predictions import Prediction, Sample, check_rows
from pipeline.evaluation.sampling import majority, pass_at
from pipeline.load import load_recipe, recipe_file
from pipeline.run import HOME


@pytest.mark.parametrize(("samples", "correct"), [(1, 0), (1, 1), (5, 0), (5, 2), (5, 4), (5, 5), (8, 3)])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(samples: int, correct: int) -> None:
    for k in range(1, samples + 1):
        subsets = list(combinations([True] * correct + [False] * (samples - correct), k))
        assert pass_at(samples, correct, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))
    with pytest.raises(ValueError):
        pass_at(samples, correct, samples + 1)


def test_large_counts_are_exact() -> None:
    assert pass_at(1000, 1, 1000) == 1.0
    assert pass_at(1000, 1, 100) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("answers", "wanted"),
    [
        (["yes", "no", "no"], "no"),
        (["yes", "no"], "yes"),
        ([None, None, "no"], "no"),
        ([None, "no", "yes"], "no"),
        ([None], None),
        ([], None),
    ],
)
def test_majority(answers: list[Answer | None], wanted: Answer | None) -> None:
    assert majority(answers) == wanted


def drawn(row: int, answers: list[Answer | None], label: int) -> Prediction:
    right = "yes" if label else "no"
    samples = [
        Sample(completion="c" if i == 0 else f"c{i}", answer=each, correct=each == right, tokens=3, ended=True)
        for i, each in enumerate(answers)
    ]
    return prediction(row, answers[0], label, samples=samples)


def test_a_comparison_counts_samples() -> None:
    rows = [
        drawn(0, ["yes", "no", "yes"], 1),
        drawn(1, ["no", "yes", "yes"], 0),
        drawn(2, [None, "no", "no"], 0),
        drawn(3, ["no", "no", "no"], 1),
    ]
    result = compare({"base": predictions("base", rows)}, [], "corr2cause", 200, 1).models["base"]
    found = result.sampling
    assert found is not None and found.samples == 3 and list(found.pass_at) == ["1", "2", "3"]
    assert found.pass_at["1"].value == pytest.approx((2 / 3 + 1 / 3 + 2 / 3 + 0) / 4)
    assert found.pass_at["3"].value == 0.75
    assert found.maj_at["1"].value == result.accuracy == 0.5
    assert found.maj_at["3"].value == 0.5  # rows 0 and 2; row 1 is outvoted
    assert found.maj_f1["3"].value == pytest.approx(2 / (2 + 1 + 1))
    assert found.pass_at["1"].low <= found.pass_at["1"].value <= found.pass_at["1"].high
    plain = compare({"base": predictions("base", [prediction(0, "yes", 1)])}, [], "corr2cause", 200, 1)
    assert plain.models["base"].sampling is None


def test_the_mean_draws_whole_premises() -> None:
    values = [1.0, 0.0, 1.0, 1.0, 0.0, 0.0]
    once = mean_interval(values, list("abcdef"), 2000, 1)
    copied = mean_interval(values * 5, list("abcdef") * 5, 2000, 1)
    assert (once.value, once.low, once.high) == pytest.approx((copied.value, copied.low, copied.high))
    assert mean_interval(values, ["a"] * 6, 100, 1).high == 1.0


def test_samples_stand_with_their_row() -> None:
    row = {
        "id": "x/0", "row": 0, "prompt": "p", "label": 1, "num_variables": 3, "template": "parent",
        "premise": "Suppose there is a closed system of 2 variables, A and B. All the statistical relations among these"
        " 2 variables are as follows: A correlates with B.", "hypothesis": "A directly causes B.",
    }  # fmt: skip
    rows = [row, {**row, "id": "x/1", "row": 1, "label": 0}]
    texts = ["Therefore: Yes", "Therefore: No", "hm", "Therefore: No"]
    made = judge_all(rows, [Completion(text, 2, True) for text in texts])
    assert [each.answer for each in made] == ["yes", None]
    assert [[one.correct for one in each.samples] for each in made] == [[True, False], [False, True]]
    assert judge_all(rows, [Completion("Therefore: Yes", 2, True)] * 2)[0].samples == []


@pytest.mark.parametrize("change", ["fewer", "other first", "wrong verdict"])
def test_samples_that_contradict_the_file_are_refused(change: str) -> None:
    one, two = drawn(0, ["yes", "no"], 1), drawn(1, ["no", "no"], 0)
    if change == "fewer":
        two = two.model_copy(update={"samples": two.samples[:1]})
    elif change == "other first":
        two = two.model_copy(update={"completion": "another"})
    else:
        two = two.model_copy(update={"samples": [two.samples[0], two.samples[1].model_copy(update={"correct": False})]})
    with pytest.raises(UserError, match="row 1"):
        check_rows(predictions("base", [one, two]), HOME)


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["evaluate.samples=4"], "are all the same without a temperature"),
        (["evaluate.mode=answer", "evaluate.samples=4", "evaluate.temperature=1.0"], "takes no samples"),
        (["evaluate.mode=answer", "evaluate.engine=vllm"], "runs on the engine transformers"),
        (["evaluate.sets=[released-v3]"], "no test set is called 'released-v3'"),
        (["evaluate.sets=[variables-25]"], "no test set is called 'variables-25'"),
        (["evaluate.sets=[corrected, corrected]"], "stands twice"),
    ],
)
def test_settings_that_do_not_fit_together(overrides: list[str], part: str) -> None:
    with pytest.raises((UserError, UserErrors)) as told:
        load_recipe(recipe_file(HOME, "smoke"), overrides)
    assert part in str(told.value)


@pytest.mark.parametrize(
    "override",
    ["evaluate.mode=answer", "evaluate.engine=vllm", "evaluate.sets=[corrected]", "evaluate.stop_at_answer=false"],
)
def test_what_only_yes_no_questions_have_is_refused_elsewhere(override: str) -> None:
    key = override.partition("=")[0]
    load_recipe(recipe_file(HOME, "gsm8k"), ["evaluate.mode=generate", "evaluate.sets=[]"])
    with pytest.raises((UserError, UserErrors), match=f"{key} is not for the task: 'gsm8k'"):
        load_recipe(recipe_file(HOME, "gsm8k"), [override])
