"""Files of completions, whoever made them, judged by the scorer of their task."""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, Protocol

from rich import progress
from rich.console import Console

from pipeline.errors import UserError
from pipeline.recipe_questions import GRADED
from pipeline.records import cannot_write
from pipeline.settings import nearest
from pipeline.tasks import corr2cause, names

FORM = '{"row": {...}, "completion": "..."}'


class Verdict(Protocol):
    """What every task's score has."""

    @property
    def correct(self) -> bool | None:
        """None only where the row's reference cannot be graded."""

    @property
    def parsed(self) -> str | None:
        """The answer as it was understood."""

    @property
    def reason(self) -> str:
        """Why, in words."""


TASKS: dict[str, Callable[[str, Mapping[str, Any]], Verdict]] = {
    "corr2cause": corr2cause.score_published,
    **{name: partial(names.score, name) for name in names.TASKS},
}
"""Task name to what scores a completion against a row in the task's published format."""


Judged = tuple[dict[str, Any], Verdict]


@dataclass
class Totals:
    """What became of the lines of a file."""

    verdicts: Counter[bool | None] = field(default_factory=Counter)
    unparsable: int = 0
    malformed: list[tuple[int, str]] = field(default_factory=list)
    """Line numbers from 1, and what is wrong with them."""


def score_file(task: str, path: Path, out: Path | None) -> Totals:
    """Write each line of `path` to `out` with `correct`, `parsed` and `reason`; `out` appears when it is whole.

    Without `out` the lines go to standard output, each as soon as it is judged. A malformed line becomes
    `{"line": number, "error": ...}` and ends nothing. Raises UserError for an unknown task, a file that cannot be read
    or has no line, and an output that cannot be written.
    """
    if task not in TASKS:
        raise UserError("unknown task", value=task, where="score TASK", do=nearest(task, TASKS))
    totals = Totals()
    if out is None:
        for scored in _scored(task, path, totals):
            print(json.dumps(scored))
        return totals
    draft = out.with_name(f".{out.name}.partial")
    try:
        with draft.open("w", encoding="utf-8") as file:
            for scored in _scored(task, path, totals):
                file.write(json.dumps(scored) + "\n")
        draft.replace(out)
    except OSError as error:
        raise cannot_write(out, error) from error
    finally:
        if draft.exists():
            draft.unlink()
    return totals


def _scored(task: str, path: Path, totals: Totals) -> Iterator[dict[str, Any]]:
    calls = (partial(_judge, task, line) for line in _lines(path))
    for number, call in enumerate(_ahead(calls) if GRADED.get(task) == "code_execution" else calls, start=1):
        try:
            given, verdict = call()
        except UserError as error:
            totals.malformed.append((number, str(error)))
            yield {"line": number, "error": str(error)}
            continue
        totals.verdicts[verdict.correct] += 1
        totals.unparsable += verdict.parsed is None
        yield {**given, "correct": verdict.correct, "parsed": verdict.parsed, "reason": verdict.reason}


def _judge(task: str, line: bytes) -> Judged:
    given = _read(line)
    return given, TASKS[task](given["completion"], given["row"])


def _ahead(calls: Iterator[Callable[[], Judged]]) -> Iterator[Callable[[], Judged]]:
    """The results of the calls, in their order; several are worked at once, for they wait for their sandboxes."""
    with ThreadPoolExecutor(names.WAITING) as pool:
        waiting: deque[Future[Judged]] = deque()
        for call in calls:
            waiting.append(pool.submit(call))
            if len(waiting) >= 2 * names.WAITING:
                yield waiting.popleft().result
        while waiting:
            yield waiting.popleft().result


def _lines(path: Path) -> Iterator[bytes]:
    """The lines of a file as they are: a completion may hold other line separators, a line may not be UTF-8."""
    count = 0
    try:
        with progress.open(path, "rb", description=path.name, console=Console(stderr=True), transient=True) as file:
            for line in file:
                count += 1
                yield line
    except OSError as error:
        raise UserError("cannot read", value=error.strerror, where=str(path), do="check the path") from None
    if not count:
        raise UserError("a file without lines", value=path.name, where=str(path), do=f"give lines of {FORM}")


def _read(line: bytes) -> dict[str, Any]:
    def refuse(what: object) -> NoReturn:
        raise UserError(f"a line is {FORM}", value=line[:60].decode(errors="replace"), do=f"mend it: {what}") from None

    try:
        given = json.loads(line.decode("utf-8-sig"), parse_constant=lambda name: refuse(f"{name} is not JSON"))
    except (ValueError, RecursionError) as error:
        refuse(error)
    if not isinstance(given, dict) or not isinstance(given.get("row"), dict):
        refuse("`row` is an object")
    if not isinstance(given.get("completion"), str):
        refuse("`completion` is a text")
    return given
