"""What models said, row by row: completions with their judged steps marked, what a model fixed and what it broke."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.evaluation.predictions import Prediction, Predictions, Step
from pipeline.evaluation.schema import Comparison

EXAMPLES = 10
"""Fixed rows, and as many broken ones, shown of each pair of models."""
LISTED = 3000
"""Rows of the table of all rows."""
TEXT_BUDGET = 3_000_000
"""Characters of completions that a page may carry; above that the rows after the first ones have none."""

Mark = Literal["", "true", "false"]
Piece = tuple[str, Mark, str]
"""A piece of a completion, whether it is a judged step, and the reason where it is false."""
WORDS = {"yes": "Yes", "no": "No", None: "none"}


def marked(completion: str, steps: Sequence[Step]) -> list[Piece]:
    """A completion in pieces, in order; a step that does not stand in the text (what is missing) comes at the end."""
    pieces: list[Piece] = []
    absent: list[Piece] = []
    place = 0
    for step in steps:
        mark: Mark = "true" if step.true else "false"
        words = r"\s+".join(map(re.escape, step.text.split()))
        found = re.compile(rf"(?<!\w){words}(?!\w)").search(completion, place) if words else None
        if found is None:
            absent.append((step.text, mark, step.reason))
            continue
        pieces += [(completion[place : found.start()], "", ""), (found[0], mark, step.reason)]
        place = found.end()
    pieces.append((completion[place:], "", ""))
    for piece in absent:
        pieces += [(" · ", "", ""), piece]
    return [piece for piece in pieces if piece[0]]


@dataclass(frozen=True)
class Example:
    """One row that a model changed."""

    fixed: bool
    row: Prediction
    said: dict[str, tuple[str, list[Piece]]]
    """The earlier model and the later one: answer and marked completion."""


def examples(comparison: Comparison, found: Mapping[str, Predictions]) -> dict[str, list[Example]]:
    """For each pair of the comparison, fixed rows and then broken ones, spread over the premises."""
    chosen = {}
    for name, pair in comparison.paired.items():
        if pair.first in found and pair.second in found:
            after, before = found[pair.first].rows, found[pair.second].rows
            chosen[name] = _changed(pair.second, before, pair.first, after)
    return chosen


def _changed(earlier: str, before: Sequence[Prediction], later: str, after: Sequence[Prediction]) -> list[Example]:
    changed: list[Example] = []
    for fixed in (True, False):
        rows = [(b, a) for b, a in zip(before, after, strict=True) if a.correct is fixed and b.correct is not fixed]
        for b, a in rows[:: max(1, len(rows) // EXAMPLES)][:EXAMPLES]:
            changed.append(Example(fixed, a, {earlier: said(b), later: said(a)}))
    return changed


def said(row: Prediction) -> tuple[str, list[Piece]]:
    """The answer in a word and the marked completion."""
    return WORDS[row.answer], marked(row.completion, row.steps)


@dataclass(frozen=True)
class Line:
    """One row of the table of all rows."""

    row: Prediction
    answers: dict[str, tuple[str, bool]]
    """For each model its answer in a word, and whether it is right."""
    tags: list[str]
    """What the row can be chosen by: `fixed:sft:base`, `broken:sft:base`, `wrong:sft`, `none:sft`."""


def lines(comparison: Comparison, found: Mapping[str, Predictions]) -> list[Line]:
    """The first LISTED rows."""
    first = next(iter(found.values()), None)
    if first is None:
        return []
    pairs = [each for each in comparison.paired.values() if each.first in found and each.second in found]
    table = []
    for place, row in enumerate(first.rows[:LISTED]):
        own = {name: each.rows[place] for name, each in found.items()}
        tags = [f"wrong:{name}" for name, each in own.items() if not each.correct]
        tags += [f"none:{name}" for name, each in own.items() if each.answer is None]
        for pair in pairs:
            after, before = own[pair.first].correct, own[pair.second].correct
            if after is not before:
                tags.append(f"{'fixed' if after else 'broken'}:{pair.first}:{pair.second}")
        table.append(Line(row, {name: (WORDS[each.answer], each.correct) for name, each in own.items()}, tags))
    return table


def completions(found: Mapping[str, Predictions], listed: int) -> dict[str, Any]:
    """What the page's script shows of a row: its premise, and each model's marked completion.

    There a piece is its text, a true step a list of its text, a false one a list of its text and the reason.
    """
    first = next(iter(found.values()), None)
    rows = first.rows[:listed] if first else []
    premises = {text: place for place, text in enumerate(dict.fromkeys(row.premise_id for row in rows))}
    size, told = 0, []
    for place, row in enumerate(rows):
        size += sum(len(each.rows[place].completion) for each in found.values())
        if size > TEXT_BUDGET:
            break
        models = {name: _short(each.rows[place]) for name, each in found.items()}
        told.append({"premise": premises[row.premise_id], "models": models})
    return {"premises": list(premises), "rows": told}


def _short(row: Prediction) -> tuple[str, list[Any]]:
    answer, pieces = said(row)
    return answer, [
        text if not mark else [text] if mark == "true" else [text, reason or "false"] for text, mark, reason in pieces
    ]
