"""Rewards: what each part is worth, what is logged, that errors are not swallowed."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.causal.generate import sample
from pipeline.recipe import Rewards
from pipeline.rewards.corr2cause import Scorer
from pipeline.tasks.corr2cause import worked

ROWS = sample("train", [4], 3, 2)
TRACES = [worked(row.premise, row.hypothesis, "full") for row in ROWS]


class Batch:
    """Columns as the trainer hands them over, and the metrics that were logged."""

    def __init__(self, *labels: int | None) -> None:
        self.logged: dict[str, list[float]] = {}
        rows = [ROWS[i % len(ROWS)] for i in range(len(labels))]
        self.columns: dict[str, Any] = {
            "premise": [row.premise for row in rows],
            "hypothesis": [row.hypothesis for row in rows],
            "label": list(labels),
            "prompts": ["not read"] * len(rows),
            "log_metric": lambda name, value: self.logged.setdefault(name, []).append(value),
        }

    @property
    def read(self) -> dict[str, list[Any]]:
        """The columns that the scorer reads."""
        return {key: self.columns[key] for key in ("premise", "hypothesis", "label")}


def test_right_wrong_and_unparsable_answers() -> None:
    batch = Batch(1, 1, 1)
    answer = Scorer(Rewards()).answer(["Therefore: Yes", "Therefore: No", "I cannot say"], **batch.columns)
    assert answer == [1.0, -1.0, -1.0]
    assert batch.logged == {"share_yes": [1 / 3], "unparsable": [1 / 3], "true_steps": [0.0]}


def test_the_worth_of_an_answer_is_the_recipes_and_messages_count_as_texts() -> None:
    completions = [[{"role": "assistant", "content": f"Therefore: {word}"}] for word in ("Yes", "No")]
    scorer = Scorer(Rewards(correct_reward=2.0, incorrect_reward=-0.5))
    assert scorer.answer(completions, **Batch(1, 1).columns) == [2.0, -0.5]


def test_what_cannot_be_graded_has_no_reward() -> None:
    assert Scorer(Rewards()).answer(["Therefore: No"] * 2, **Batch(None, 0).columns) == [None, 1.0]


def test_the_length_bonus_is_capped() -> None:
    batch = Batch(0)
    steps = len(Scorer(Rewards()).scores(TRACES[:1], batch.read)[0].steps)
    assert steps > 4
    for most, paid in ((3, 3), (steps, steps), (100, steps), (0, 0)):
        scorer = Scorer(Rewards(reasoning_length_bonus=0.5, max_bonus_steps=most))
        assert scorer.reasoning_length(TRACES[:1], **batch.columns) == [0.5 * paid]


def test_true_steps_pay_up_to_the_first_false_one() -> None:
    batch = Batch(0, 0)
    head, _, tail = TRACES[1].partition(" Colliders:")
    broken = head + " Colliders: A > A;" + tail.partition(";")[2]
    scorer = Scorer(Rewards(true_steps=0.5))
    whole, cut = scorer.true_steps([TRACES[0], broken], **batch.columns)
    steps = scorer.scores([TRACES[0], broken], batch.read)[1].steps
    first = [step.true for step in steps].index(False)
    assert whole == 0.5
    assert cut == 0.5 * first / len(steps)
    assert 0 < cut < 0.5


def test_shares_are_logged_for_each_batch() -> None:
    scorer = Scorer(Rewards())
    batch = Batch(*(row.label for row in ROWS))
    assert scorer.answer(TRACES, **batch.columns) == [1.0] * 3
    assert batch.logged["true_steps"] == [1.0]
    scorer.answer(["Therefore: Yes"] * 3, **batch.columns)
    assert batch.logged["share_yes"][1] == 1.0
    assert batch.logged["true_steps"][1] < 1.0
    assert batch.logged["unparsable"] == [0.0, 0.0]


def test_a_new_batch_is_scored_anew() -> None:
    scorer = Scorer(Rewards())
    assert scorer.answer(["Therefore: No"], **Batch(0).columns) == [1.0]
    assert scorer.answer(["Therefore: No"], **Batch(1).columns) == [-1.0]


def test_functions_have_the_names_under_which_they_are_logged() -> None:
    assert [each.__name__ for each in Scorer(Rewards()).functions()] == ["answer", "reasoning_length", "true_steps"]


def test_an_error_in_the_scorer_is_not_swallowed() -> None:
    columns = Batch(0).columns
    del columns["label"]
    for function in Scorer(Rewards()).functions():
        with pytest.raises(KeyError, match="label"):
            function(["Therefore: No"], **columns)
    with pytest.raises(Exception, match="a premise begins with"):
        Scorer(Rewards()).answer(["Therefore: No"], **{**Batch(0).columns, "premise": ["Suppose not"]})
