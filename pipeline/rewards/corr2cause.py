"""GRPO rewards, composed from the scores of the task that evaluation uses too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pipeline.recipe import Rewards
from pipeline.tasks.corr2cause import Score, score

RewardFunction = Callable[..., list[float | None]]


def completion_text(completion: Any) -> str:
    """The text of a completion as TRL hands it over: a string, or a list of one assistant message."""
    return completion if isinstance(completion, str) else str(completion[-1]["content"])


class Scorer:
    """Scores each batch of completions once and gives every reward function its part."""

    def __init__(self, rewards: Rewards) -> None:
        self.rewards = rewards
        self._batch: tuple[list[str], dict[str, list[Any]]] = ([], {})
        self._scores: list[Score] = []

    def scores(self, completions: Sequence[Any], columns: dict[str, list[Any]]) -> list[Score]:
        """Scores of a batch; the parts of one batch share them. An exception in the scorer is not caught."""
        texts = [completion_text(completion) for completion in completions]
        if (texts, columns) != self._batch:
            rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
            self._scores = [score(text, row) for text, row in zip(texts, rows, strict=True)]
            self._batch = (texts, columns)
        return self._scores

    def functions(self) -> list[RewardFunction]:
        """The reward functions for GRPOTrainer; TRL logs each apart under its own name."""
        return [self.answer, self.reasoning_length, self.true_steps]

    def answer(self, completions: Sequence[Any], **batch: Any) -> list[float | None]:
        """correct_reward or incorrect_reward; unparsable counts as incorrect and is counted apart."""
        scores = self.scores(completions, _columns(batch))
        _log_shares(scores, batch["log_metric"])
        worth = {True: self.rewards.correct_reward, False: self.rewards.incorrect_reward, None: None}
        return [worth[one.correct] for one in scores]

    def reasoning_length(self, completions: Sequence[Any], **batch: Any) -> list[float | None]:
        """reasoning_length_bonus for each reasoning step, up to max_bonus_steps."""
        scores = self.scores(completions, _columns(batch))
        most = self.rewards.max_bonus_steps
        return [self.rewards.reasoning_length_bonus * min(len(one.steps), most) for one in scores]

    def true_steps(self, completions: Sequence[Any], **batch: Any) -> list[float | None]:
        """true_steps times the share of steps before the first false one."""
        scores = self.scores(completions, _columns(batch))
        return [self.rewards.true_steps * one.true_share for one in scores]


def _columns(batch: dict[str, Any]) -> dict[str, list[Any]]:
    return {key: batch[key] for key in ("premise", "hypothesis", "label")}


def _log_shares(scores: Sequence[Score], log_metric: Callable[[str, float], None]) -> None:
    count = len(scores)
    log_metric("share_yes", sum(one.parsed == "yes" for one in scores) / count)
    log_metric("unparsable", sum(one.parsed is None for one in scores) / count)
    log_metric("true_steps", sum(one.true_share for one in scores) / count)
