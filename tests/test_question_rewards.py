"""Rewards of published questions: right and wrong, partial credit, no grade, weighted sums."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from pipeline.recipe_questions import Reward
from pipeline.rewards.questions import QuestionScorer
from pipeline.tasks.names import score_all
from pipeline.tasks.score import Score

SUM = {"question": "1 + 1", "answer": "#### 2"}
PAIR = {"problem": "p", "answer": "(1, 2, 3)"}
CODE = {"prompt": "p", "code": "def f(n):\n    return n", "test_list": ["assert f(1) == 1", "assert f(2) == 2"]}


def values(
    reward: dict[str, Any], cases: list[tuple[str, dict[str, Any], str]]
) -> tuple[dict[str, Any], dict[str, float]]:
    """(the values of each function by name, what was logged) for (task, row, completion)."""
    logged: dict[str, float] = {}
    batch = {
        "task": [task for task, _, _ in cases],
        "published": [json.dumps(row) for _, row, _ in cases],
        "template": ["math_cot"] * len(cases),
        "completion_ids": [[0] * len(text) for _, _, text in cases],
        "log_metric": logged.__setitem__,
    }
    completions = [[{"role": "assistant", "content": text}] for _, _, text in cases]
    functions = QuestionScorer(Reward.model_validate(reward), longest=100).functions()
    return {each.__name__: each(completions, **batch) for each in functions}, logged


def test_math_correctness_pays_positive_or_negative_and_nothing_where_there_is_no_grade() -> None:
    cases = [
        ("gsm8k", SUM, "#### 2"),
        ("gsm8k", SUM, "#### 3"),
        ("gsm8k", SUM, "?"),
        ("gsm8k", SUM | {"answer": "2"}, "2"),
    ]
    found, logged = values({"type": "math_correctness", "positive": 2.0, "negative": -0.5}, cases)
    assert found == {"math_correctness": [2.0, -0.5, -0.5, None]}
    assert logged["accuracy"] == 0.25 and logged["unparsable"] == 0.5


def test_the_same_completion_of_the_same_row_is_judged_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not so of another row, and its place in the batch stays its own."""
    judged: list[str] = []

    def counted(cases: Sequence[tuple[str, str, Mapping[str, Any]]]) -> list[Score]:
        judged.extend(text for _, text, _ in cases)
        return score_all(cases)

    monkeypatch.setattr("pipeline.rewards.questions.score_all", counted)
    other = SUM | {"answer": "#### 3"}
    cases = [("gsm8k", SUM, "#### 2"), ("gsm8k", SUM, "#### 3"), ("gsm8k", SUM, "#### 2"), ("gsm8k", other, "#### 2")]
    found, _ = values({"type": "math_correctness", "positive": 2.0, "negative": -0.5}, cases)
    assert found == {"math_correctness": [2.0, -0.5, 2.0, -0.5]}
    assert judged == ["#### 2", "#### 3", "#### 2"]


@pytest.mark.parametrize(("partial", "paid"), [(True, 1 / 3), (False, -1.0)])
def test_partial_credit_of_an_answer_with_parts(partial: bool, paid: float) -> None:
    reward = {"type": "math_correctness", "negative": -1.0, "partial_credit": partial}
    found, _ = values(reward, [("math", PAIR, "\\boxed{(1, 2, 4)}"), ("math", PAIR, "\\boxed{(1, 2, 3)}")])
    assert found["math_correctness"] == pytest.approx([paid, 1.0])


@pytest.mark.parametrize(("partial", "paid"), [(True, 0.5), (False, 0.0)])
def test_code_execution_pays_all_or_the_share_of_tests(partial: bool, paid: float) -> None:
    programs = ["def f(n): return n", "def f(n): return 1", "def f(n): return 0", "while True: pass"]
    found, _ = values(
        {"type": "code_execution", "partial_credit": partial}, [("mbpp", CODE, each) for each in programs]
    )
    assert found == {"code_execution": [1.0, paid, 0.0, 0.0]}


def test_weighted_parts_are_apart_and_their_weights_in_order() -> None:
    parts = [
        {"type": "math_correctness", "weight": 1.0},
        {"type": "format", "weight": 0.2},
        {"type": "length_penalty", "weight": 0.1},
    ]
    reward = Reward.model_validate({"type": "weighted", "parts": parts})
    assert [part.weight for part in reward.summed()] == [1.0, 0.2, 0.1]
    found, _ = values({"type": "weighted", "parts": parts}, [("gsm8k", SUM, "It is \\boxed{2}."), ("gsm8k", SUM, "2")])
    assert found == {"math_correctness": [1.0, 1.0], "format": [1.0, 0.0], "length_penalty": [-0.16, -0.01]}


@pytest.mark.parametrize(
    "reward",
    [
        {"type": "weighted"},
        {"type": "math_correctness", "parts": [{"type": "format"}]},
        {"type": "weighted", "parts": [{"type": "format"}, {"type": "format"}]},
        {"type": "weighted", "parts": [{"type": "format", "weight": 0.0}]},
        {"type": "math_correctness", "positive": -1.0},
    ],
)
def test_rewards_that_teach_nothing_are_refused(reward: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"go together|twice|no part|not above"):
        Reward.model_validate(reward)
