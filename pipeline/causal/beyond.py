"""Files of new rows: any number of variables, random letters and wordings, balanced, no class in two of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from pipeline.causal.files import Format, Written, save
from pipeline.causal.generate import Balance, Row, Style, sample
from pipeline.causal.sources import Dags
from pipeline.causal.splits import Split
from pipeline.causal.text import MOST_VARIABLES
from pipeline.errors import UserError


@dataclass(frozen=True)
class Choice:
    """Which rows to draw."""

    variables: tuple[int, ...]
    rows: dict[Split, int]
    balance: Balance
    seed: int
    dags: Dags
    style: Style


def read_numbers(text: str) -> tuple[int, ...]:
    """`7`, `7-10` or `5,7,10`. Raises UserError for anything else, and beyond 2 to 24."""
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        if match is None:
            raise UserError("not numbers of variables", value=text, where="--variables", do="write 7, 7-10 or 5,7,10")
        found += range(int(match[1]), int(match[2] or match[1]) + 1)
    if not found or min(found) < 2 or max(found) > MOST_VARIABLES:
        raise UserError(
            f"numbers of variables are 2 to {MOST_VARIABLES}", value=text, where="--variables", do="change it"
        )
    return tuple(dict.fromkeys(found))


def read_counts(text: str) -> dict[Split, int]:
    """`train,dev,test` rows, such as `10000,500,1000`. Raises UserError for anything else."""
    match = re.fullmatch(r"(\d+),(\d+),(\d+)", text.replace(" ", ""))
    if match is None:
        raise UserError(
            "not three numbers of rows", value=text, where="--rows", do="write train,dev,test: 10000,500,1000"
        )
    return {"train": int(match[1]), "dev": int(match[2]), "test": int(match[3])}


def write(folder: Path, choice: Choice, form: Format = "csv") -> list[Written]:
    """Draw and write train, dev and test. Raises UserError when a set has too few different rows."""
    written = []
    for place, (split, count) in enumerate(choice.rows.items()):
        seed = choice.seed * len(choice.rows) + place
        rows = sample(split, choice.variables, count, seed, choice.balance, choice.dags, choice.style) if count else []
        path = folder / f"{split}.{form}"
        save(path, (_columns(row) for row in rows), form)
        written.append(Written(path, len(rows), sum(row.label for row in rows), 0))
    return written


def _columns(row: Row) -> tuple[str, int, int, str]:
    return row.input, row.label, row.num_variables, row.template
