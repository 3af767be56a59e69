"""GRPO rewards of published questions: `math_correctness`, `code_execution`, and weighted sums with form and length."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from typing import Any

from pipeline.recipe_questions import Reward, RewardPart
from pipeline.rewards.corr2cause import Part, RewardFunction, completion_text
from pipeline.tasks.example import has_form
from pipeline.tasks.names import score_all
from pipeline.tasks.score import Score


class QuestionScorer:
    """Scores each batch of completions once and gives every part of the reward its values, not yet weighed."""

    def __init__(self, reward: Reward, longest: int) -> None:
        """`longest` is the most tokens that a completion can have."""
        self.parts, self.longest = reward.summed(), longest
        self._batch: list[tuple[str, str, str]] = []
        self._scores: list[Score] = []

    def functions(self) -> list[RewardFunction]:
        """The reward functions for GRPOTrainer; TRL logs each apart under its name. The first one logs the shares."""
        made = [self._function(part) for part in self.parts]
        made[0] = _named(self.parts[0].type, self._logging(made[0]))
        return made

    def _function(self, part: RewardPart) -> RewardFunction:
        def answer(completions: Sequence[Any], **batch: Any) -> Part:
            return [worth(one, part) for one in self.scores(completions, batch)]

        def form(completions: Sequence[Any], **batch: Any) -> Part:
            texts = map(completion_text, completions)
            return [float(has_form(text, name)) for text, name in zip(texts, batch["template"], strict=True)]

        def length(completions: Sequence[Any], **batch: Any) -> Part:
            return [-len(ids) / self.longest for ids in batch["completion_ids"]]

        return _named(part.type, {"format": form, "length_penalty": length}.get(part.type, answer))

    def scores(self, completions: Sequence[Any], batch: dict[str, Any]) -> list[Score]:
        """Scores of a batch; the parts of one batch share them. An exception in the scorer is not caught.

        The same completion of the same row is judged once: a program need not run again.
        """
        texts = map(completion_text, completions)
        asked = list(zip(batch["task"], texts, batch["published"], strict=True))
        if asked != self._batch:
            different = list(dict.fromkeys(asked))
            found = score_all([(task, text, json.loads(row)) for task, text, row in different])
            judged = dict(zip(different, found, strict=True))
            self._scores = [judged[each] for each in asked]
            self._batch = asked
        return self._scores

    def _logging(self, function: Callable[..., Part]) -> Callable[..., Part]:
        """The function, which also logs what the answers of the batch are and how long judging them took."""

        def logged(completions: Sequence[Any], **batch: Any) -> Part:
            started = time.perf_counter()
            scores = self.scores(completions, batch)
            values = function(completions, **batch)
            log_metric = batch["log_metric"]
            log_metric("accuracy", sum(one.correct is True for one in scores) / len(scores))
            log_metric("unparsable", sum(one.parsed is None for one in scores) / len(scores))
            log_metric("reward_time", time.perf_counter() - started)
            return values

        return logged


def worth(score: Score, part: RewardPart) -> float | None:
    """What an answer pays: None where the reference cannot be graded, in between with partial credit."""
    if score.correct is None:
        return None
    share = score.share if part.partial_credit else float(score.correct)
    return part.negative + (part.positive - part.negative) * share


def _named(name: str, function: Callable[..., Part]) -> RewardFunction:
    function.__name__ = name
    return function
