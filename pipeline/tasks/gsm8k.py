"""GSM8K (Cobbe et al. 2021, arXiv 2110.14168): grade school problems whose answers end in `#### number`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pipeline.tasks.example import Example
from pipeline.tasks.math_answers import after_hashes, final_part, grade
from pipeline.tasks.score import Score

SPLITS = ("train", "test")
FORMATS = ({"question": str, "answer": str},)
TEMPLATE = "math_cot"

_CALCULATOR = re.compile(r"<<[^<>\n]*>>")
"""Annotations such as `<<48/2=24>>`, made for a calculator that no model here has."""


def example(row: Mapping[str, Any]) -> Example:
    """The problem, its reasoning without calculator annotations, and the number after `####`."""
    reasoning, _, _ = row["answer"].partition("####")
    return Example(row["question"], _CALCULATOR.sub("", reasoning).strip(), after_hashes(row["answer"]))


def score(completion: str, row: Mapping[str, Any]) -> Score:
    """Judge the final answer of a completion by the number after `####` in the row's `answer`.

    A solution in the data set's own style, with calculator annotations, is unfinished without a line `#### number`.
    """
    if _CALCULATOR.search(completion) and after_hashes(final_part(completion)) is None:
        return Score(False, None, "a solution with calculator annotations that does not come to its ####")
    return grade(completion, after_hashes(row["answer"]))
