"""The tasks whose rows are published questions, by name; Corr2Cause has rows, prompts and steps of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from pipeline.errors import UserError
from pipeline.recipe_questions import GRADED
from pipeline.tasks import arithmetic, codealpaca, gsm8k, humaneval, magicoder, math, mbpp, metamathqa
from pipeline.tasks.example import Example
from pipeline.tasks.score import Score

WAITING = 16
"""Threads that wait for sandboxes; how many of these there are at once the sandbox decides."""


class Task(Protocol):
    """What the module of a task has."""

    @property
    def SPLITS(self) -> tuple[str, ...]:
        """The splits of its published data set."""

    @property
    def FORMATS(self) -> tuple[Mapping[str, type], ...]:
        """Fields that a row has, with their types; a row fits one of them."""

    @property
    def TEMPLATE(self) -> str:
        """Its usual template."""

    def example(self, row: Mapping[str, Any], /) -> Example:
        """What a row asks and how it is answered."""

    def score(self, completion: str, row: Mapping[str, Any], /) -> Score:
        """The verdict on a completion."""


TASKS: dict[str, Task] = {
    "gsm8k": gsm8k,
    "math": math,
    "metamathqa": metamathqa,
    "arithmetic": arithmetic,
    "codealpaca": codealpaca,
    "magicoder": magicoder,
    "humaneval": humaneval,
    "mbpp": mbpp,
}


def check_row(task: str, row: Mapping[str, Any], where: str) -> None:
    """Raise UserError naming `where` (row and file) and the field, for a row that fits no format of its task."""
    formats = TASKS[task].FORMATS
    if any(not _unfit(fields, row) for fields in formats):
        return
    nearest = max(formats, key=lambda fields: sum(field in row for field in fields))
    field = _unfit(nearest, row)[0]
    wanted = nearest[field].__name__
    what = f"{where}: field `{field}` is {'not a ' + wanted if field in row else 'missing'}"
    value = str(row[field])[:60] if field in row else sorted(row)
    raise UserError(what, value=value, do=f"{task} rows have " + " or ".join(", ".join(each) for each in formats))


def _unfit(fields: Mapping[str, type], row: Mapping[str, Any]) -> list[str]:
    return [field for field, kind in fields.items() if not isinstance(row.get(field), kind)]


def score(task: str, completion: str, row: Mapping[str, Any]) -> Score:
    """The verdict on a completion for a row in the published format. Raises UserError for a row of another format."""
    check_row(task, row, "the row")
    return TASKS[task].score(completion, row)


def score_all(cases: Sequence[tuple[str, str, Mapping[str, Any]]]) -> list[Score]:
    """The verdicts on many (task, completion, row), in order; programs are tested several at once."""
    with ThreadPoolExecutor(WAITING) as pool:
        waiting = [pool.submit(score, *case) if GRADED.get(case[0]) == "code_execution" else None for case in cases]
        return [score(*case) if one is None else one.result() for case, one in zip(cases, waiting, strict=True)]
