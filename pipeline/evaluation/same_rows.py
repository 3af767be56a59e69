"""Predictions of two runs side by side: the same questions, in one order."""

from __future__ import annotations

from collections import Counter

from pipeline.errors import UserError
from pipeline.evaluation.predictions import Prediction, Predictions

Question = tuple[str, str, int]
"""Premise, hypothesis, label: prompts and ids may differ between runs."""


def question(row: Prediction) -> Question:
    """What a row asks, and the answer that counts as right."""
    return row.premise_id, row.hypothesis, row.label


def key_of_test(predictions: Predictions) -> frozenset[tuple[Question, int]]:
    """What tells one test set from another, whatever the order of its rows."""
    return frozenset(Counter(map(question, predictions.rows)).items())


def aligned(name: str, one: Predictions, other: str, two: Predictions) -> tuple[Predictions, Predictions]:
    """Both, sorted alike. Raises UserError unless they answer the same questions with the same labels."""
    if key_of_test(one) != key_of_test(two):
        shared = len({*map(question, one.rows)} & {*map(question, two.rows)})
        raise UserError(
            f"{name} and {other} were asked different test rows: of {len(one.rows)} and {len(two.rows)} they share",
            value=shared, where="their predictions", do="evaluate both on the same data",
        )  # fmt: skip
    return (
        Predictions(one.header, sorted(one.rows, key=question)),
        Predictions(two.header, sorted(two.rows, key=question)),
    )
