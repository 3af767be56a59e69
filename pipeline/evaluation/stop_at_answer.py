"""Where completions state their answer, so that they can end there."""

from __future__ import annotations

import re

from pipeline.tasks.yes_no import parse_answer

STATED = re.compile(r"\bTherefore: (?:Yes|No)\b(?:[.!]|(?=\s*[\n<]))")
"""The last line of a trace (docs/trace.md), and a sign that it is whole: `No` may begin `No path`."""


def cut_at_answer(text: str) -> str | None:
    """A text up to its first stated answer outside of thoughts, or None when there is none."""
    found = (text[: each.end()] for each in STATED.finditer(text))
    return next((part for part in found if parse_answer(part) is not None), None)
