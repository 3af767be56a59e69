"""Published results (docs/leaderboard.yaml), to stand beside a run on the very same test."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import UserError
from pipeline.run import HOME
from pipeline.settings import parse_yaml, read_text

LEADERBOARD = HOME / "docs" / "leaderboard.yaml"
Percent = Annotated[float, Field(ge=0, le=100)]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Result(_Entry):
    """One line of a published table, per cent of the valid class."""

    model: str
    f1: Percent
    precision: Percent | None = None
    recall: Percent | None = None
    accuracy: Percent | None = None
    valid: int | None = None
    """Valid rows, where the line is of a part of the test."""
    mean_of_draws: bool = False
    """A mean over random draws, so no counts of rows."""


class Table(_Entry):
    """A published table with its source and the test that it is of."""

    title: str
    source: str
    test: Literal["v1", "v2", "paraphrase", "refactorization", "unstated"]
    results: Annotated[list[Result], Field(min_length=1)]


class _Leaderboard(_Entry):
    tables: list[Table]


def read_leaderboard(path: Path = LEADERBOARD) -> list[Table]:
    """All published tables. Raises UserError naming the first field that is wrong."""
    try:
        return _Leaderboard.model_validate(parse_yaml(read_text(path), str(path))).tables
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise UserError(
            f"not a table of published results: {field}: {first['msg']}", value=first["input"], where=str(path),
            do="mend this entry",
        ) from None  # fmt: skip


def published_tables(test: object) -> list[Table]:
    """The tables of one published test; none for other rows (`test` is None)."""
    return [table for table in read_leaderboard() if table.test == test and test != "unstated"]
