"""GRPO in which every reasoning step answers for itself: an advantage for each token, not one for the completion."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from trl import GRPOTrainer

from pipeline.causal.places import decided_at
from pipeline.tasks.corr2cause import Score, Step


class StepCreditTrainer(GRPOTrainer):  # type: ignore[misc]
    """Adds to GRPO's advantages what each step is worth by itself, up to the first false one.

    With v = 1 for a true step and 0 for a false one, p the mean of v over all steps of the batch, the tokens of a step
    get `weight` * (v - p) / sqrt(p (1 - p)). Tokens after the first false step, and those that belong to none, keep
    the completion's advantage alone. Process supervision after Shao et al. 2024 (DeepSeekMath, arXiv 2402.03300,
    section 4.1.3), with the causal engine in place of a reward model, and each step's own reward in place of the sum
    of those that follow, since whether a statement is true does not depend on the ones before it.
    """

    def __init__(self, *args: Any, weight: float, last_scores: Callable[[], list[Score]], **options: Any) -> None:
        """`last_scores` gives the scores of the batch of completions that was rewarded last, in its order."""
        super().__init__(*args, **options)
        self.weight, self.last_scores = weight, last_scores

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        ids, mask = output["completion_ids"], output["completion_mask"]
        truth = torch.full(ids.shape, torch.nan, device=ids.device)
        for row, score in enumerate(self.last_scores()):
            written = ids[row][mask[row].bool()].tolist()
            marks = token_truth(written, score.steps, self._text)
            truth[row, : len(marks)] = torch.tensor(marks, device=ids.device)
        worth = step_advantages(truth, self.accelerator.gather)
        output["advantages"] = output["advantages"].unsqueeze(1) + self.weight * worth
        return output

    def _text(self, tokens: list[int]) -> str:
        return str(self.processing_class.decode(tokens, skip_special_tokens=True))


def token_truth(tokens: Sequence[int], steps: Sequence[Step], text_of: Callable[[list[int]], str]) -> list[float]:
    """1 for each token of a true step, 0 for those of the first false one, NaN for all others.

    The tokens of a step are those from the end of the step before it to the one with which it is decided.
    """
    text = text_of(list(tokens))
    marks = [float("nan")] * len(tokens)
    places = zip(decided_at(text, [step.text for step in steps]), steps, strict=True)
    by_place = sorted(places, key=lambda each: each[0])
    ends = [0] + [_tokens_until(place, tokens, text_of) for place, _ in by_place]
    for (begin, end), (_, step) in zip(pairwise(ends), by_place, strict=True):
        marks[begin:end] = [float(step.true)] * (end - begin)
        if not step.true:
            break
    return marks


def _tokens_until(place: int, tokens: Sequence[int], text_of: Callable[[list[int]], str]) -> int:
    """How many tokens it takes to write the first `place` characters."""
    counts = range(1, len(tokens) + 1)
    return min(len(tokens), 1 + bisect_left(counts, place, key=lambda count: len(text_of(list(tokens[:count])))))


def step_advantages(truth: torch.Tensor, gather: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """(completions, tokens) of 1, 0 and NaN -> the same shape: truth with mean 0 and deviation 1 over all processes.

    0 where there is no step, and everywhere when all steps are true or all are false.
    """
    judged = ~truth.isnan()
    sums = gather(torch.stack([truth.nansum(), judged.sum().to(truth.dtype)])).view(-1, 2).sum(dim=0)
    mean = sums[0] / sums[1].clamp(min=1)
    spread = (mean * (1 - mean)).sqrt()
    if spread < 1e-6:
        return torch.zeros_like(truth)
    return torch.where(judged, (truth - mean) / spread, 0.0).nan_to_num(0.0)
