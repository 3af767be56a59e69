"""Magicoder's instruction sets (Wei et al. 2023, arXiv 2312.02120): OSS-Instruct and Evol-Instruct; no tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.tasks.code_text import program_of
from pipeline.tasks.codealpaca import NO_TESTS
from pipeline.tasks.example import Example
from pipeline.tasks.score import Score

SPLITS = ("train",)
FORMATS = ({"problem": str, "solution": str}, {"instruction": str, "response": str})
TEMPLATE = "plain"


def example(row: Mapping[str, Any]) -> Example:
    """The problem and its solution, under the names of either set."""
    if "problem" in row:
        return Example(row["problem"], row["solution"])
    return Example(row["instruction"], row["response"])


def score(completion: str, row: Mapping[str, Any]) -> Score:
    """The program that a completion holds; `correct` is None, for nothing in the row can grade it."""
    return Score(None, program_of(completion), NO_TESTS)
