"""Answers for files: a table of rows, or one premise and its hypotheses as plain text."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipeline.causal.relations import hypotheses
from pipeline.causal.rows_file import read_rows
from pipeline.causal.solver import Solution, answer, edges
from pipeline.causal.text import Parsed, Premise, read_hypothesis, read_premise, read_row, write_hypothesis
from pipeline.errors import UserError

TABLES = (".csv", ".parquet")


@dataclass
class Totals:
    """What became of the rows of a file."""

    verdicts: Counter[str] = field(default_factory=Counter)
    unreadable: int = 0
    labelled: int = 0
    """Rows that have a label 0 or 1."""
    disagree: int = 0
    """Of those, how many have another label than the solver."""


def solve_rows(path: Path, totals: Totals) -> Iterator[dict[str, Any]]:
    """One object for each row of a table: `row`, `label`, `verdict`, `witness`, or `row` and `error`.

    Raises UserError for a file that is no table with a column `input`.
    """
    for number, record in enumerate(read_rows(path)):
        try:
            parsed = read_row(record.get("input", ""))
            solution = _answer(parsed)
        except UserError as error:
            totals.unreadable += 1
            yield {"row": number, "error": f"row {number}: {error}"}
            continue
        totals.verdicts[solution.verdict] += 1
        if record.get("label") in ("0", "1"):
            totals.labelled += 1
            totals.disagree += int(record["label"]) != solution.label
        yield {"row": number, **described(solution, parsed.premise)}


_answer = lru_cache(maxsize=1 << 12)(answer)


def described(solution: Solution, premise: Premise) -> dict[str, Any]:
    """A solution as JSON: label, verdict, and the witness as a list of edges or null."""
    witness = None if solution.witness is None else edges(solution.witness, premise.names)
    return {"label": solution.label, "verdict": solution.verdict, "witness": witness}


def solve_rows_into(path: Path, out: Path, totals: Totals) -> None:
    """Write the objects of `solve_rows` as JSON lines; the file appears when all are written."""
    partial = out.with_name(f".{out.name}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            for each in solve_rows(path, totals):
                file.write(json.dumps(each, ensure_ascii=False) + "\n")
        partial.replace(out)
    except OSError as error:
        raise UserError("cannot write the answers", value=error.strerror, where=str(out), do="free it") from error
    finally:
        partial.unlink(missing_ok=True)


def read_text(path: Path) -> tuple[Premise, list[str]]:
    """A premise and hypotheses from a plain text: `Premise: ...` and any number of `Hypothesis: ...` lines.

    Without a hypothesis line all hypotheses of the released wording are meant. Raises UserError for other text.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError("cannot read", value=error.strerror, where=str(path), do="check the path") from None
    except UnicodeDecodeError as error:
        raise UserError("not UTF-8 text", value=f"byte {error.start}", where=str(path), do="save it as UTF-8") from None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    premise = read_premise(re.sub(r"^Premise:\s*", "", lines[0] if lines else ""))
    given = [re.sub(r"^Hypothesis:\s*", "", line) for line in lines[1:]]
    return premise, given or [write_hypothesis(each, premise.names) for each in hypotheses(len(premise.names))]


def solve_text(path: Path) -> Iterator[tuple[str, Solution, Premise]]:
    """(hypothesis, solution, premise) for each hypothesis of a plain text."""
    premise, given = read_text(path)
    for text in given:
        yield text, answer(Parsed(premise, read_hypothesis(text, premise.names))), premise
