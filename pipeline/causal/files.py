"""The published data set as files: texts, labels and columns of each row, written as CSV or parquet."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np

from pipeline.causal.classes import independences_of
from pipeline.causal.enumeration import EXACT, RELEASED
from pipeline.causal.relations import Hypothesis, Relation
from pipeline.causal.released import (
    ENTAILED,
    KINDS,
    MEANING,
    Ints,
    Labels,
    Rows,
    Version,
    satisfiable,
    splits,
    verdicts,
)  # fmt: skip
from pipeline.causal.splits import Split
from pipeline.causal.text import last_letters, letters, template, write_hypothesis, write_premise, write_row
from pipeline.causal.wording import PARAPHRASED
from pipeline.errors import UserError

Config = Literal["default", "perturbation_by_paraphrasing", "perturbation_by_refactorization"]
Format = Literal["csv", "parquet"]

COLUMNS = ("input", "label", "num_variables", "template")
Row = tuple[str, int, int, str]
"""Input text, label, number of variables, template."""


@dataclass(frozen=True)
class Choice:
    """Which files to write."""

    version: Version = "v2"
    most: int = 6
    labels: Labels = "released"
    config: Config = "default"
    seed: int = 0
    """Settles which of two phrases an indirect cause has; the released choice was never seeded."""


@dataclass(frozen=True)
class Written:
    """One file."""

    path: Path
    rows: int
    valid: int
    changed: int
    """Labels other than the released one; 0 for rows that were not released."""


def names(n: int, config: Config) -> tuple[str, ...]:
    """A, B, C, ..., or Z, Y, X, ... in the refactorized set."""
    return last_letters(n) if config == "perturbation_by_refactorization" else letters(n)


@cache
def _premise(n: int, unique: int, released: bool, config: Config) -> str:
    return write_premise(independences_of(n, unique, released), names(n, config))


@cache
def _hypothesis(kind: int, i: int, j: int, phrase: int, config: Config) -> tuple[str, str]:
    """The text, and the released template name that follows from it."""
    relation, turned = MEANING[kind]
    called = names(max(i, j) + 1, config)
    asked = Hypothesis(relation, j, i) if turned else Hypothesis(relation, i, j)
    if config == "perturbation_by_paraphrasing":
        return write_hypothesis(asked, called, 0, PARAPHRASED), KINDS[kind]
    text = write_hypothesis(asked, called, phrase)
    return text, template(text)


def texts(rows: Rows, labels: Ints, choice: Choice, split: Split) -> Iterator[Row]:
    """Each row as the columns of a file.

    The first edition words what i and j are to each other in one way, the second an indirect cause in either of two
    at random; there the template column follows from the text.
    """
    rng = random.Random(f"{choice.seed} {split}")
    columns = (rows.n, rows.unique, rows.i, rows.j, rows.kind, labels)
    for n, unique, i, j, kind, label in zip(*(column.tolist() for column in columns), strict=True):
        phrase = int(MEANING[kind] == (Relation.INDIRECT, True))
        if choice.version == "v2" and MEANING[kind][0] is Relation.INDIRECT:
            phrase = int(rng.random() < 0.5)
        hypothesis, name = _hypothesis(kind, i, j, phrase, choice.config)
        premise = _premise(n, unique, choice.labels != "clean", choice.config)
        yield write_row(premise, hypothesis), label, n, name if choice.version == "v2" else KINDS[kind]


def write(folder: Path, choice: Choice, form: Format = "csv") -> list[Written]:
    """Write train, dev and test; with corrected labels also `changes.csv`, which lists every label that differs.

    The version must be v1 for the perturbation sets: they were made from the first edition. Their labels are 0
    neutral, 1 entailed, 2 contradicted in the paraphrased set, else 0 and 1. Raises UserError for a combination that
    does not exist and for a folder that cannot be written.
    """
    _check(choice)
    written: list[Written] = []
    changes: list[str] = []
    for split, rows in splits(choice.version, choice.labels, choice.most).items():
        made, changed = _write(folder / f"{split}.{form}", rows, choice, split, form)
        written.append(made)
        changes += changed
    if choice.labels == "corrected":
        _replace(folder / "changes.csv", ["split,row,released,corrected,premise\n", *changes])
    return written


def _check(choice: Choice) -> None:
    if choice.config != "default" and choice.version != "v1":
        raise UserError(
            "the perturbation sets have the rows of v1", value=choice.version, where="--version", do="use --version v1"
        )
    if not 2 <= choice.most <= 6:
        raise UserError(
            "the published data set has 2 to 6 variables", value=choice.most, where="--max-variables",
            do="use 2 to 6, or --variables for more",
        )  # fmt: skip


def _write(path: Path, rows: Rows, choice: Choice, split: Split, form: Format) -> tuple[Written, list[str]]:
    """Write one file; what was written, and the lines of its labels that differ from the released ones."""
    three = choice.config == "perturbation_by_paraphrasing"
    verdict = verdicts(rows, RELEASED if choice.labels == "released" else EXACT, clean=choice.labels == "clean")
    valid = (verdict == ENTAILED).astype(np.int64)
    labels = verdict if three else valid
    save(path, texts(rows, labels, choice, split), form)
    changes: list[str] = []
    if choice.labels == "corrected":
        before = verdicts(rows, RELEASED)
        changes = list(_changes(split, rows, before if three else (before == ENTAILED).astype(np.int64), labels))
    return Written(path, len(rows), int(valid.sum()), len(changes)), changes


def _changes(split: Split, rows: Rows, before: Ints, after: Ints) -> Iterator[str]:
    for row in np.flatnonzero(before != after).tolist():
        fits = "satisfiable" if satisfiable(int(rows.n[row]))[rows.unique[row]] else "no DAG satisfies it"
        yield f"{split},{row},{before[row]},{after[row]},{fits}\n"


def save(path: Path, rows: Iterator[Row], form: Format) -> None:
    """Write rows with a header. Raises UserError when they cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _save(path, rows, form)
    except OSError as error:
        raise UserError("cannot write", value=error.strerror, where=str(path), do="free it or make room") from error


def _save(path: Path, rows: Iterator[Row], form: Format) -> None:
    if form == "parquet":
        _save_parquet(path, rows)
        return
    # every input has commas and a line break, so it is quoted; nothing in the data has a quote or another comma
    lines = (f'"{text}",{label},{n},{name}\n' for text, label, n, name in rows)
    _replace(path, [",".join(COLUMNS) + "\n"], lines)


def _replace(path: Path, *parts: Iterable[str]) -> None:
    """Write lines to a file that appears whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("w", encoding="utf-8", newline="") as file:
            for part in parts:
                file.writelines(part)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _save_parquet(path: Path, rows: Iterator[Row]) -> None:
    import pyarrow
    from pyarrow import parquet

    types = (pyarrow.string(), pyarrow.int64(), pyarrow.int64(), pyarrow.string())
    schema = pyarrow.schema(list(zip(COLUMNS, types, strict=True)))
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with parquet.ParquetWriter(partial, schema) as writer:
            while chunk := list(islice(rows, 16384)):
                columns = zip(*chunk, strict=True)
                arrays = [pyarrow.array(column, type=each) for column, each in zip(columns, types, strict=True)]
                writer.write_table(pyarrow.table(arrays, schema=schema))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
