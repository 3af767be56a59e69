"""MetaMathQA (Yu et al. 2023, arXiv 2309.12284): GSM8K and MATH, augmented; responses end `The answer is: 32`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pipeline.tasks.example import Example
from pipeline.tasks.math_answers import grade
from pipeline.tasks.score import Score

SPLITS = ("train",)
FORMATS = ({"query": str, "response": str},)
TEMPLATE = "math_cot"

_FINAL = re.compile(r"\s*(?:^####[^\n]*\s*)?^The answer is:(?P<answer>[^\n]*)\s*\Z", re.MULTILINE)
"""The last line, and GSM8K's own answer line where it stands before."""


def example(row: Mapping[str, Any]) -> Example:
    """The question, the response without its last line, and the answer of that line."""
    found = _FINAL.search(row["response"])
    if found is None:
        return Example(row["query"], row["response"])
    return Example(row["query"], row["response"][: found.start()], found["answer"].strip())


def score(completion: str, row: Mapping[str, Any]) -> Score:
    """Judge the final answer of a completion by that of the row's `response`."""
    return grade(completion, example(row).answer)
