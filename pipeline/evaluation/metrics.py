"""Metrics of yes/no answers against labels, with intervals from a bootstrap over whole premises. numpy only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.schema import Interval

Answer = Literal["yes", "no"]
Counts = NDArray[np.int64]
"""(..., 3): true positives, false positives, false negatives of the valid class (label 1)."""

CONFIDENCE = 0.95


def count(answers: Sequence[Answer | None], labels: Sequence[int]) -> Counts:
    """(rows, 3): which rows are a true positive, a false positive, a false negative of the valid class.

    An answer that could not be parsed (None) is no positive prediction: a false negative where the label is 1.
    """
    yes = np.array([answer == "yes" for answer in answers], dtype=bool)
    valid = np.array([label == 1 for label in labels], dtype=bool)
    if yes.shape != valid.shape:
        raise ValueError(f"{yes.size} answers but {valid.size} labels")
    return np.stack([yes & valid, yes & ~valid, ~yes & valid], axis=-1).astype(np.int64)


def f1_of(counts: Counts) -> NDArray[np.float64]:
    """F1 of counts (..., 3) -> (...). Without a true positive F1 is 0, also where no row is valid at all."""
    tp, fp, fn = counts[..., 0], counts[..., 1], counts[..., 2]
    return np.asarray(2 * tp / np.maximum(2 * tp + fp + fn, 1), dtype=np.float64)


def f1_score(answers: Sequence[Answer | None], labels: Sequence[int]) -> float:
    """F1 of the valid class."""
    return float(f1_of(count(answers, labels).sum(axis=0)))


def classification(answers: Sequence[Answer | None], labels: Sequence[int]) -> dict[str, float | int]:
    """Plain numbers: f1, precision, recall, accuracy, accuracy_published_rule, rows, valid, unparsable.

    `accuracy` counts an unparsable answer as wrong whatever the label; `accuracy_published_rule` reads it as No, as
    the evaluation of Jin et al. 2024 (arXiv 2306.05836) does. A ratio without a denominator is 0.
    """
    per_row = count(answers, labels)
    tp, fp, fn = (int(n) for n in per_row.sum(axis=0))
    rows, unparsable = len(labels), sum(answer is None for answer in answers)
    unparsable_invalid = sum(a is None and label == 0 for a, label in zip(answers, labels, strict=True))
    not_yes_wrong = rows - fp - fn
    return {
        "f1": float(f1_of(np.array([tp, fp, fn]))),
        "precision": tp / max(tp + fp, 1),
        "recall": tp / max(tp + fn, 1),
        "accuracy": (not_yes_wrong - unparsable_invalid) / max(rows, 1),
        "accuracy_published_rule": not_yes_wrong / max(rows, 1),
        "rows": rows,
        "valid": tp + fn,
        "unparsable": unparsable,
    }


def by_premise(counts: Counts, premises: Sequence[str]) -> Counts:
    """Counts (rows, k) summed over the rows of each premise -> (premises, k), premises in sorted order."""
    names, index = np.unique(np.asarray(premises, dtype=object).astype(str), return_inverse=True)
    summed = np.zeros((len(names), counts.shape[1]), dtype=np.int64)
    np.add.at(summed, index, counts)
    return summed


def resample(per_premise: Counts, resamples: int, seed: int) -> Counts:
    """Totals (resamples, k) when whole premises are drawn with replacement, as many as there are.

    The draws depend only on the number of premises and the seed, so two models on the same rows are paired.
    """
    premises = len(per_premise)
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(premises, np.full(premises, 1 / premises), size=resamples)
    return np.asarray(weights @ per_premise, dtype=np.int64)


def bootstrap_f1(
    answers: Sequence[Answer | None], labels: Sequence[int], premises: Sequence[str], resamples: int, seed: int
) -> Interval:
    """F1 and its percentile interval. Rows of one premise depend on each other, so whole premises are drawn.

    One premise says nothing of how F1 varies between premises: its interval is all of 0..1.
    """
    counts = count(answers, labels)
    value = float(f1_of(counts.sum(axis=0)))
    per_premise = by_premise(counts, premises)
    if len(per_premise) < 2:
        return Interval(value=value, low=0.0, high=1.0)
    return _percentile(value, f1_of(resample(per_premise, resamples, seed)))


def difference_f1(
    answers: Sequence[Answer | None],
    reference: Sequence[Answer | None],
    labels: Sequence[int],
    premises: Sequence[str],
    resamples: int,
    seed: int,
) -> Interval:
    """F1 of `answers` minus F1 of `reference` on the same rows, both counted on the same drawn premises."""
    counts = np.concatenate([count(answers, labels), count(reference, labels)], axis=-1)
    totals = counts.sum(axis=0)
    value = float(f1_of(totals[:3]) - f1_of(totals[3:]))
    per_premise = by_premise(counts, premises)
    if len(per_premise) < 2:
        return Interval(value=value, low=-1.0, high=1.0)
    drawn = resample(per_premise, resamples, seed)
    return _percentile(value, f1_of(drawn[:, :3]) - f1_of(drawn[:, 3:]))


def _percentile(value: float, drawn: NDArray[np.float64]) -> Interval:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Interval(value=value, low=float(low), high=float(high))
