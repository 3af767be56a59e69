"""Sums and differences of small numbers, made here: rows in GSM8K's format for a model that begins from nothing."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.tasks import gsm8k

SPLITS, FORMATS, TEMPLATE = gsm8k.SPLITS, gsm8k.FORMATS, "plain"
example, score = gsm8k.example, gsm8k.score

LARGEST = 30


def rows() -> list[dict[str, Any]]:
    """Every sum and difference of two whole numbers up to LARGEST, in an order that is always the same."""
    made = [
        {"question": f"{x} {sign} {y}", "answer": f"{x} {sign} {y} = {value}\n#### {value}"}
        for x in range(LARGEST + 1)
        for y in range(LARGEST + 1)
        for sign, value in (("+", x + y), ("-", x - y))
    ]
    return [made[i] for i in np.random.default_rng(0).permutation(len(made))]
