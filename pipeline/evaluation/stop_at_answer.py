"""Ends the completions of a batch that have stated their answer and go on all the same."""

from __future__ import annotations

import re
from typing import Any

from pipeline.tasks.yes_no import parse_answer

EVERY = 8
"""Tokens between two looks."""
WINDOW = 3 * EVERY
"""Tokens at the end that are looked at."""
_STATED = re.compile(r"\bTherefore: (?:Yes|No)\b(?:[.!]|(?=\s*[\n<]))")
"""The last line of a trace (docs/trace.md), and a sign that it is whole: `No` may begin `No path`."""


class AnswerStop:
    """A stopping criterion of `generate`. A completion is looked at at its own steps 8, 16, ..., whatever its batch."""

    def __init__(self, tokenizer: Any, prompt_length: int, rows: int) -> None:
        """For a batch of `rows` prompts, padded to `prompt_length` tokens."""
        self.tokenizer, self.prompt_length = tokenizer, prompt_length
        self.lengths: list[int | None] = [None] * rows

    def __call__(self, ids: Any, scores: Any, **kwargs: Any) -> Any:
        """(rows,): which completions of `ids` (rows, tokens) are at their end."""
        import torch

        written = ids.shape[1] - self.prompt_length
        if written % EVERY == 0:
            ends = self.tokenizer.batch_decode(ids[:, max(self.prompt_length, ids.shape[1] - WINDOW) :])
            for row, text in enumerate(ends):
                if self.lengths[row] is None and _STATED.search(text) and self._says(ids[row]):
                    self.lengths[row] = written
        return torch.tensor([length is not None for length in self.lengths], device=ids.device)

    def _says(self, ids: Any) -> bool:
        """Whether the answer counts: it does not inside of a thought that is not closed."""
        return cut_at_answer(self.tokenizer.decode(ids[self.prompt_length :])) is not None


def cut_at_answer(text: str) -> str | None:
    """A text up to its first stated answer outside of thoughts, or None when there is none."""
    found = (text[: each.end()] for each in _STATED.finditer(text))
    return next((part for part in found if parse_answer(part) is not None), None)
