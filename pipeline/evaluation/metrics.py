"""Metrics of yes/no answers against labels, with intervals from a bootstrap over whole premises. numpy only."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.schema import Interval

Answer = Literal["yes", "no"]
Counts = NDArray[np.int64]
"""(..., 6): true positives, false positives, false negatives, true negatives of the valid class (label 1), then the
unparsable answers to valid rows (false negatives too) and those to other rows (neither right nor a positive)."""

CONFIDENCE = 0.95


def count(answers: Sequence[Answer | None], labels: Sequence[int]) -> Counts:
    """(rows, 6): what each row is.

    An answer that could not be parsed (None) is no positive prediction: a false negative where the label is 1.
    """
    yes = np.array([answer == "yes" for answer in answers], dtype=bool)
    none = np.array([answer is None for answer in answers], dtype=bool)
    valid = np.array([label == 1 for label in labels], dtype=bool)
    if yes.shape != valid.shape:
        raise ValueError(f"{yes.size} answers but {valid.size} labels")
    kinds = [yes & valid, yes & ~valid, ~yes & valid, ~yes & ~valid & ~none, none & valid, none & ~valid]
    return np.stack(kinds, axis=-1).astype(np.int64)


def _share(part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    """A ratio without a denominator is 0."""
    return np.asarray(part / np.maximum(whole, 1), dtype=np.float64)


def f1_of(counts: Counts) -> NDArray[np.float64]:
    """F1 of counts (..., 6) -> (...). Without a true positive F1 is 0, also where no row is valid at all."""
    tp, fp, fn = counts[..., 0], counts[..., 1], counts[..., 2]
    return _share(2 * tp, 2 * tp + fp + fn)


def precision_of(counts: Counts) -> NDArray[np.float64]:
    """Share of the answers Yes that are right."""
    return _share(counts[..., 0], counts[..., 0] + counts[..., 1])


def recall_of(counts: Counts) -> NDArray[np.float64]:
    """Share of the valid rows that are answered Yes."""
    return _share(counts[..., 0], counts[..., 0] + counts[..., 2])


def accuracy_of(counts: Counts) -> NDArray[np.float64]:
    """Share of right answers; an unparsable one is wrong whatever the label."""
    return _share(counts[..., 0] + counts[..., 3], _rows(counts))


def balanced_accuracy_of(counts: Counts) -> NDArray[np.float64]:
    """Mean share of right answers of the two classes; of one class where the rows have no other."""
    valid = counts[..., 0] + counts[..., 2]
    other = _rows(counts) - valid
    shares = _share(counts[..., 0], valid) + _share(counts[..., 3], other)
    return np.asarray(shares / np.maximum((valid > 0).astype(int) + (other > 0), 1), dtype=np.float64)


def mcc_of(counts: Counts) -> NDArray[np.float64]:
    """Matthews' correlation coefficient for answers of three kinds (Gorodkin 2004, Comput. Biol. Chem. 28, R_K).

    Yes, No and none against the two labels; without unparsable answers it is the usual coefficient of a 2 x 2 table.
    0 where all answers or all labels are the same.
    """
    values = counts.astype(np.float64)  # squares of counts may leave the range of integers in the product below
    tp, fp, fn, tn, lost, other_lost = (values[..., k] for k in range(6))
    rows, valid = tp + fp + fn + tn + other_lost, tp + fn
    yes, none = tp + fp, lost + other_lost
    no = rows - yes - none
    agreement = (tp + tn) * rows - valid * yes - (rows - valid) * no
    spread = (rows**2 - yes**2 - no**2 - none**2) * (rows**2 - valid**2 - (rows - valid) ** 2)
    return np.asarray(np.where(spread > 0, agreement / np.sqrt(np.maximum(spread, 1)), 0.0), dtype=np.float64)


def _rows(counts: Counts) -> NDArray[np.int64]:
    return np.asarray(counts[..., :4].sum(axis=-1) + counts[..., 5])


METRICS = {
    "f1": f1_of,
    "precision": precision_of,
    "recall": recall_of,
    "accuracy": accuracy_of,
    "balanced_accuracy": balanced_accuracy_of,
    "mcc": mcc_of,
}
"""What is counted of every model: each takes counts (..., 6) to values (...)."""


def f1_score(answers: Sequence[Answer | None], labels: Sequence[int]) -> float:
    """F1 of the valid class."""
    return float(f1_of(count(answers, labels).sum(axis=0)))


def classification(answers: Sequence[Answer | None], labels: Sequence[int]) -> dict[str, float | int]:
    """Plain numbers: those of METRICS, accuracy_published_rule, rows, valid, unparsable.

    `accuracy` counts an unparsable answer as wrong whatever the label; `accuracy_published_rule` reads it as No, as
    the evaluation of Jin et al. 2024 (arXiv 2306.05836) does.
    """
    totals = count(answers, labels).sum(axis=0)
    tp, fp, fn, _, lost, other_lost = (int(n) for n in totals)
    rows = len(labels)
    return {
        **{name: float(metric(totals)) for name, metric in METRICS.items()},
        "accuracy_published_rule": (rows - fp - fn) / max(rows, 1),
        "rows": rows,
        "valid": tp + fn,
        "unparsable": lost + other_lost,
    }


def by_premise(counts: Counts, premises: Sequence[str]) -> Counts:
    """Counts (rows, k) summed over the rows of each premise -> (premises, k), premises in sorted order."""
    places = {name: place for place, name in enumerate(sorted(set(premises)))}
    summed = np.zeros((len(places), counts.shape[1]), dtype=np.int64)
    np.add.at(summed, [places[name] for name in premises], counts)
    return summed


def resample(per_premise: Counts, resamples: int, seed: int) -> Counts:
    """Totals (resamples, k) when whole premises are drawn with replacement, as many as there are.

    The draws depend only on the number of premises and the seed, so two models on the same rows are paired.
    """
    weights = _draws(len(per_premise), resamples, seed)
    totals = weights @ per_premise.astype(np.float64)  # exact, far below 2**53; a product of integers is slow
    return totals.astype(np.int64)


@lru_cache(maxsize=4)
def _draws(premises: int, resamples: int, seed: int) -> NDArray[np.float64]:
    """(resamples, premises): how often each premise is drawn."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(premises, np.full(premises, 1 / premises), size=resamples).astype(np.float64)


def bootstrap(
    answers: Sequence[Answer | None], labels: Sequence[int], premises: Sequence[str], resamples: int, seed: int
) -> dict[str, Interval]:
    """Each of METRICS and its percentile interval. Rows of one premise depend on each other: whole premises are drawn.

    One premise says nothing of how a value varies between premises: its interval is the whole range.
    """
    counts = count(answers, labels)
    per_premise = by_premise(counts, premises)
    few = len(per_premise) < 2
    drawn = per_premise[:0] if few else resample(per_premise, resamples, seed)
    found = {}
    for name, metric in METRICS.items():
        value = float(metric(counts.sum(axis=0)))
        whole = Interval(value=value, low=-1.0 if name == "mcc" else 0.0, high=1.0)
        found[name] = whole if few else _percentile(value, metric(drawn))
    return found


def bootstrap_f1(
    answers: Sequence[Answer | None], labels: Sequence[int], premises: Sequence[str], resamples: int, seed: int
) -> Interval:
    """F1 of the valid class and its interval, as `bootstrap`."""
    return bootstrap(answers, labels, premises, resamples, seed)["f1"]


def difference_f1(
    answers: Sequence[Answer | None],
    reference: Sequence[Answer | None],
    labels: Sequence[int],
    premises: Sequence[str],
    resamples: int,
    seed: int,
) -> Interval:
    """F1 of `answers` minus F1 of `reference` on the same rows, both counted on the same drawn premises."""
    both = np.concatenate([count(answers, labels), count(reference, labels)], axis=-1)
    per_premise = by_premise(both, premises)
    totals = both.sum(axis=0)
    value = float(f1_of(totals[:6]) - f1_of(totals[6:]))
    if len(per_premise) < 2:
        return Interval(value=value, low=-1.0, high=1.0)
    drawn = resample(per_premise, resamples, seed)
    return _percentile(value, f1_of(drawn[:, :6]) - f1_of(drawn[:, 6:]))


def mean_interval(values: Sequence[float], premises: Sequence[str], resamples: int, seed: int) -> Interval:
    """The mean of a value (0..1) of each row and its interval, whole premises drawn as in `bootstrap`."""
    places = {name: place for place, name in enumerate(sorted(set(premises)))}
    sums = np.zeros((len(places), 2))
    np.add.at(sums, [places[name] for name in premises], np.stack([values, np.ones(len(values))], axis=-1))
    value = float(np.mean(values)) if len(values) else 0.0
    if len(places) < 2:
        return Interval(value=value, low=0.0, high=1.0)
    drawn = _draws(len(places), resamples, seed) @ sums
    return _percentile(value, drawn[:, 0] / drawn[:, 1])


def mcnemar(fixed: int, broken: int) -> float:
    """Exact two-sided p of McNemar's test: of the rows that changed, `fixed` became right and `broken` wrong.

    It takes rows for independent; those of one premise are not, so the interval of the difference decides
    (McNemar 1947, Psychometrika 12).
    """
    rows, fewer = fixed + broken, min(fixed, broken)
    ways = total = 1
    for k in range(fewer):
        ways = ways * (rows - k) // (k + 1)
        total += ways
    return min(1.0, float(Fraction(2 * total, 2**rows)))


BINS = 10


def calibration(probabilities: Sequence[float], labels: Sequence[int]) -> tuple[float, float]:
    """(Brier score, expected calibration error) of probabilities of Yes against the labels.

    The error is over ten bins of equal width: the mean distance of a bin's mean probability from its share of valid
    rows, bins weighed by their rows (Naeini et al. 2015, AAAI, for the valid class).
    """
    p, y = np.asarray(probabilities, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    which = np.minimum((p * BINS).astype(int), BINS - 1)
    apart = np.abs(np.bincount(which, weights=p - y, minlength=BINS))
    return float(np.mean((p - y) ** 2)), float(apart.sum() / max(len(p), 1))


def _percentile(value: float, drawn: NDArray[np.float64]) -> Interval:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Interval(value=value, low=float(low), high=float(high))
