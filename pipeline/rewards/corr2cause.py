"""GRPO rewards, composed from the scores of the task that evaluation uses too."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from typing import Any

from pipeline.recipe_rewards import Rewards
from pipeline.tasks.corr2cause import Score, score

Part = list[float | None]
"""A value for each completion; None where the row's label cannot be graded."""
RewardFunction = Callable[..., Part]
LogMetric = Callable[[str, float], None]

COLUMNS = ("premise", "hypothesis", "label")
_FORMAT = re.compile(r"(?:(?!Therefore:).)*Therefore: (?:Yes|No)\s*", re.DOTALL)
_SAME = 1e-6


def completion_text(completion: Any) -> str:
    """The text of a completion as TRL hands it over: a string, or a list of one assistant message."""
    return completion if isinstance(completion, str) else str(completion[-1]["content"])


class Scorer:
    """Scores each batch of completions once and gives every reward function its part, which is not yet weighed."""

    def __init__(self, rewards: Rewards, labels: Sequence[Any], longest: int) -> None:
        """`labels` are those of the stage's rows, `longest` is the most tokens that a completion can have."""
        self.rewards, self.longest = rewards, longest
        valid, invalid = labels.count(1), labels.count(0)
        self.class_weight = {1: (valid + invalid) / 2 / max(valid, 1), 0: (valid + invalid) / 2 / max(invalid, 1)}
        self._batch: list[tuple[Any, ...]] = []
        self._scores: list[Score] = []

    def functions(self) -> list[RewardFunction]:
        """The reward functions for GRPOTrainer, in the order of the weights; TRL logs each apart under its name."""
        return [getattr(self, name) for name in self.rewards.weights()]

    def scores(self, completions: Sequence[Any], batch: dict[str, Any]) -> list[Score]:
        """Scores of a batch; the parts of one batch share them. An exception in the scorer is not caught.

        A trained model often writes the same to the same row: that is judged once.
        """
        asked = list(zip(map(completion_text, completions), *(batch[column] for column in COLUMNS), strict=True))
        if asked != self._batch:
            judged = {each: score(each[0], dict(zip(COLUMNS, each[1:], strict=True))) for each in dict.fromkeys(asked)}
            self._scores = [judged[each] for each in asked]
            self._batch = asked
        return self._scores

    def last(self) -> list[Score]:
        """The scores of the batch that was judged last, in its order."""
        return self._scores

    def answer(self, completions: Sequence[Any], **batch: Any) -> Part:
        """correct_reward or incorrect_reward; unparsable counts as incorrect and is counted apart. Logs the shares."""
        started = time.perf_counter()
        scores = self.scores(completions, batch)
        worth = {True: self.rewards.correct_reward, False: self.rewards.incorrect_reward, None: None}
        values = [worth[one.correct] for one in scores]
        _log_shares(scores, batch["log_metric"])
        others = [getattr(self, name)(completions, **batch) for name in list(self.rewards.weights())[1:]]
        self._log_groups([values, *others], batch)
        batch["log_metric"]("reward_time", time.perf_counter() - started)
        return values

    def class_balanced(self, completions: Sequence[Any], **batch: Any) -> Part:
        """+-1 for the answer, times the weight of the row's class."""
        scores = self.scores(completions, batch)
        return [
            None if one.correct is None else self.class_weight[label] * (1 if one.correct else -1)
            for one, label in zip(scores, batch["label"], strict=True)
        ]

    def true_steps(self, completions: Sequence[Any], **batch: Any) -> Part:
        """The share of steps before the first false one."""
        return [one.true_share for one in self.scores(completions, batch)]

    def format(self, completions: Sequence[Any], **batch: Any) -> Part:
        """1 for a completion that ends in its answer, worded as the traces do, else 0."""
        return [float(bool(_FORMAT.fullmatch(completion_text(each)))) for each in completions]

    def reasoning_length(self, completions: Sequence[Any], **batch: Any) -> Part:
        """Reasoning steps, at most max_bonus_steps."""
        return [float(min(len(one.steps), self.rewards.max_bonus_steps)) for one in self.scores(completions, batch)]

    def length_penalty(self, completions: Sequence[Any], **batch: Any) -> Part:
        """From 0 at length_penalty_from tokens to -1 at the most tokens that a completion can have."""
        free = min(self.rewards.length_penalty_from, self.longest - 1)
        return [-max(0.0, (len(ids) - free) / (self.longest - free)) for ids in batch["completion_ids"]]

    def _log_groups(self, parts: list[Part], batch: dict[str, Any]) -> None:
        """Log the share of prompts whose completions all have the same reward: nothing is learned from them."""
        groups: dict[tuple[str, str], list[float]] = {}
        for premise, hypothesis, *values in zip(batch["premise"], batch["hypothesis"], *parts, strict=True):
            weighed = zip(self.rewards.weights().values(), values, strict=True)
            total = sum(weight * (value or 0.0) for weight, value in weighed)
            groups.setdefault((premise, hypothesis), []).append(total)
        spreads = [max(totals) - min(totals) for totals in groups.values() if len(totals) > 1]
        if spreads:
            batch["log_metric"]("groups_without_signal", sum(spread < _SAME for spread in spreads) / len(spreads))


def _log_shares(scores: Sequence[Score], log_metric: LogMetric) -> None:
    count = len(scores)
    for word in ("yes", "no"):
        log_metric(f"share_{word}", sum(one.parsed == word for one in scores) / count)
    log_metric("unparsable", sum(one.parsed is None for one in scores) / count)
    log_metric("true_steps", sum(one.true_share for one in scores) / count)
