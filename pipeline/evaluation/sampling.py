"""pass@k and maj@k of rows that have several completions each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import comb

from pipeline.evaluation.metrics import Answer, bootstrap_f1, mean_interval
from pipeline.evaluation.predictions import Predictions
from pipeline.evaluation.schema import Sampling


def pass_at(samples: int, correct: int, k: int) -> float:
    """The chance that one of `k` completions drawn from `samples`, of which `correct` are right, is right.

    The unbiased estimate of Chen et al. 2021 (arXiv 2107.03374, equation 1). Raises ValueError for k above samples.
    """
    if not 0 < k <= samples:
        raise ValueError(f"pass@{k} of {samples} samples")
    return 1 - comb(samples - correct, k) / comb(samples, k)


def majority(answers: Sequence[Answer | None]) -> Answer | None:
    """The most frequent answer, of equally frequent ones the first; completions without an answer have no vote."""
    votes = Counter(answer for answer in answers if answer is not None)
    return votes.most_common(1)[0][0] if votes else None


def sampling(predictions: Predictions, resamples: int, seed: int) -> Sampling | None:
    """pass@k and maj@k for k = 1, 2, 4, ... and all; None where rows have one completion each."""
    rows = predictions.rows
    drawn = len(rows[0].samples) if rows else 0
    if drawn == 0:
        return None
    counts = sorted({2**power for power in range(drawn.bit_length()) if 2**power <= drawn} | {drawn})
    right = [sum(each.correct for each in row.samples) for row in rows]
    found = Sampling(samples=drawn, pass_at={}, maj_at={}, maj_f1={})
    for k in counts:
        voted = [majority([each.answer for each in row.samples[:k]]) for row in rows]
        hits = [float(answer == ("yes" if row.label == 1 else "no")) for answer, row in zip(voted, rows, strict=True)]
        chances = [pass_at(drawn, correct, k) for correct in right]
        found.pass_at[str(k)] = mean_interval(chances, predictions.premises, resamples, seed)
        found.maj_at[str(k)] = mean_interval(hits, predictions.premises, resamples, seed)
        found.maj_f1[str(k)] = bootstrap_f1(voted, predictions.labels, predictions.premises, resamples, seed)
    return found
