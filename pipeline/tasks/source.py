"""Corr2Cause rows from files: the released CSV format, read strictly and without heavy imports."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import UserError
from pipeline.settings import raise_all

COLUMNS = ("input", "label")
"""Columns that a file must have; `num_variables` and `template` are read from the text when absent."""

MAX_REPORTED = 10


def is_file_source(source: str) -> bool:
    """Whether `data.source` names a file on this machine (else it is `generated` or a hub id)."""
    return source.endswith((".csv", ".CSV")) or source.startswith((".", "/", "~")) or Path(source).is_file()


def read_csv(path: Path) -> Iterator[tuple[int, str, int]]:
    """Yield (row, input, label) for every row, `row` counted from 0.

    Raises UserError for a missing, empty or non-UTF-8 file, absent columns, or a label that is not 0 or 1.
    """
    if not path.is_file():
        raise UserError("no such data file", value=str(path), where="data.source", do="check the path")
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            _check_header(reader.fieldnames, path)
            row = -1
            for row, record in enumerate(reader):
                yield row, record["input"] or "", _label(record["label"], row, path)
            if row < 0:
                raise UserError("a data file without rows", value=path.name, where=str(path), do="give rows")
    except UnicodeDecodeError as error:
        raise UserError("not UTF-8 text", value=f"byte {error.start}", where=str(path), do="save it as UTF-8") from None
    except PermissionError as error:
        raise UserError("cannot read", value=error.strerror, where=str(path), do="check its permissions") from None
    except csv.Error as error:
        raise UserError("not a CSV file", value=str(error), where=str(path), do="save it as comma-separated") from None


def check_source(path: Path) -> None:
    """Read a whole CSV file and raise what is wrong with it, up to ten rows at once. Raises UserError(s)."""
    errors: list[UserError] = []
    rows = read_csv(path)
    while len(errors) < MAX_REPORTED:
        try:
            row, text, _ = next(rows)
            if "Premise:" not in text or "Hypothesis:" not in text:
                what = f"row {row} has no `Premise: ...` line followed by a `Hypothesis: ...` line"
                errors.append(UserError(what, value=text[:60], where=str(path), do="use the released format"))
        except StopIteration:
            break
        except UserError as error:
            errors.append(error)
            break
    raise_all(errors)


def _check_header(names: object, path: Path) -> None:
    if not names:
        raise UserError("an empty data file", value=path.name, where=str(path), do="give the header and rows")
    columns = list(names) if isinstance(names, (list, tuple)) else []
    missing = [column for column in COLUMNS if column not in columns]
    if missing:
        raise UserError(
            f"column {', '.join(missing)} is missing; the header has", value=columns, where=str(path),
            do="use the released format: input,label,num_variables,template",
        )  # fmt: skip


def _label(text: str | None, row: int, path: Path) -> int:
    if text not in ("0", "1"):
        raise UserError(f"the label of row {row} is not 0 or 1", value=text, where=str(path), do="mend this row")
    return int(text)
