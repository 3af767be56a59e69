"""MATH (Hendrycks et al. 2021, arXiv 2103.03874): competition problems whose solutions box their answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.tasks.example import Example
from pipeline.tasks.math_answers import grade
from pipeline.tasks.score import Score

SPLITS = ("train", "test")
FORMATS = ({"problem": str, "solution": str}, {"problem": str, "answer": str})
TEMPLATE = "math_cot"


def boxed(text: str) -> str | None:
    """What the last `\\boxed{...}`, `\\fbox{...}` or `\\boxed x` holds; None without one or when it never ends."""
    start = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    if start < 0:
        return None
    inside = text[start:].removeprefix("\\boxed").removeprefix("\\fbox").lstrip()
    if not inside.startswith("{"):
        return inside.split("$")[0].strip() or None
    depth = 0
    for place, char in enumerate(inside):
        escaped = place > 0 and inside[place - 1] == "\\"
        depth += 0 if escaped else {"{": 1, "}": -1}.get(char, 0)
        if depth == 0 and not escaped:
            return inside[1:place]
    return None


def reference(row: Mapping[str, Any]) -> str | None:
    """The row's `answer` (as MATH-500 has it), else what its solution boxes last."""
    answer = row.get("answer")
    return str(answer) if answer is not None else boxed(row.get("solution") or "")


def example(row: Mapping[str, Any]) -> Example:
    """The problem and its solution; where that one boxes no answer, the answer apart."""
    solution = row.get("solution")
    return Example(row["problem"], solution, None if solution and boxed(solution) else reference(row))


def score(completion: str, row: Mapping[str, Any]) -> Score:
    """Judge the final answer of a completion by value: LaTeX, fractions, units, intervals, sets, matrices."""
    return grade(completion, reference(row))
