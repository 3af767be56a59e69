"""CodeAlpaca (Chaudhary 2023): instructions about code with answers to learn from; nothing that could grade others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.tasks.code_text import program_of
from pipeline.tasks.example import Example
from pipeline.tasks.score import Score

SPLITS = ("train",)
FORMATS = ({"instruction": str, "output": str},)
TEMPLATE = "plain"

NO_TESTS = "rows of this data set have no tests"


def example(row: Mapping[str, Any]) -> Example:
    """The instruction, its input below it where there is one, and the output."""
    given = row.get("input") or ""
    return Example(row["instruction"] + (f"\n\n{given}" if given.strip() else ""), row["output"])


def score(completion: str, row: Mapping[str, Any]) -> Score:
    """The program that a completion holds; `correct` is None, for nothing in the row can grade it."""
    return Score(None, program_of(completion), NO_TESTS)
