"""Sums and differences of small numbers, worked digit by digit: rows in GSM8K's format for a model from scratch."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.tasks import gsm8k

SPLITS, FORMATS, TEMPLATE = gsm8k.SPLITS, gsm8k.FORMATS, "plain"
example, score = gsm8k.example, gsm8k.score

LARGEST = 99


def rows() -> list[dict[str, Any]]:
    """Every sum and difference of two whole numbers up to LARGEST, in an order that is always the same.

    Half of the solutions are worked digit by digit, half state the answer alone. SFT learns to do either; that the
    first is right more often is for rewards to find.
    """
    numbers = range(LARGEST + 1)
    made = [
        (f"{x} {sign} {y}", worked, value)
        for x in numbers
        for y in numbers
        for sign, worked, value in (("+", worked_sum(x, y), x + y), ("-", worked_difference(x, y), x - y))
    ]
    order = np.random.default_rng(0).permutation(len(made))
    return [
        {"question": question, "answer": f"{f'({worked})' if place % 2 else ''}\n#### {value}"}
        for place, (question, worked, value) in enumerate(made[i] for i in order)
    ]


def worked_sum(x: int, y: int) -> str:
    """The ones, then the tens with what is carried, of two numbers below 100."""
    carried, ones = (x % 10 + y % 10) // 10, x % 10 + y % 10
    return f"{x % 10} + {y % 10} = {ones}, {x // 10} + {y // 10} + {carried} = {x // 10 + y // 10 + carried}"


def worked_difference(x: int, y: int) -> str:
    """The larger number less the smaller, both below 100: the ones, then the tens without what is borrowed."""
    large, small = max(x, y), min(x, y)
    borrowed = int(large % 10 < small % 10)
    ones, tens = large % 10 + 10 * borrowed, large // 10
    steps = f"{ones} - {small % 10} = {ones - small % 10}", f"{tens} - {small // 10} - {borrowed}"
    return f"{large} - {small}, {steps[0]}, {steps[1]} = {tens - small // 10 - borrowed}"
