"""The verdict on one completion, for tasks whose answers are right or wrong and have no classes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Score:
    """Verdict on one completion. `correct` is None only where the row's reference cannot be graded."""

    correct: bool | None
    parsed: str | None
    """The answer, or the program, as it was understood; None where the completion has none."""
    reason: str
    share: float = 0.0
    """Share of the tests passed, or of the parts of an answer (a tuple, a set) that are right; 1 when correct."""
