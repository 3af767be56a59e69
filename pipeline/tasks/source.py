"""Corr2Cause rows from files: the released CSV format, read strictly and without heavy imports."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from pipeline.causal.rows_file import read_rows
from pipeline.errors import UserError
from pipeline.settings import raise_all

COLUMNS = ("input", "label")
"""Columns that a file must have; `num_variables` and `template` are read from the text when absent."""

MAX_REPORTED = 10


def is_file_source(source: str) -> bool:
    """Whether `data.source` names a file on this machine (else it is `generated`, a folder or a hub id)."""
    if is_folder_source(source):
        return False
    return source.endswith((".csv", ".CSV")) or source.startswith((".", "/", "~")) or Path(source).is_file()


def is_folder_source(source: str) -> bool:
    """Whether `data.source` names a folder on this machine, with train, dev and test files."""
    return Path(source).expanduser().is_dir()


def read_folder(folder: Path, split: str) -> Iterator[tuple[int, str, int]]:
    """Yield (row, input, label) of the file of one set; dev may be called validation.

    Raises UserError as `read_csv`, or when the file is not there.
    """
    names = ("dev", "validation") if split == "dev" else (split,)
    table = next((path for name in names if (path := folder / f"{name}.parquet").is_file()), None)
    if table is None:
        texts = [folder / f"{name}.csv" for name in names]
        yield from read_csv(next((path for path in texts if path.is_file()), texts[0]))
        return
    for row, record in enumerate(read_rows(table)):
        yield row, record["input"], _label(record.get("label"), row, table)


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


def check_source(source: str) -> None:
    """Read the file or the three files of a source and raise what is wrong, up to ten rows at once. Raises UserErrors.

    What is no file or folder here (`generated`, a hub id) is not looked at.
    """
    path = Path(source).expanduser()
    if is_folder_source(source):
        for split in ("train", "dev", "test"):
            _check_rows(read_folder(path, split), path / split)
    elif is_file_source(source):
        _check_rows(read_csv(path), path)


def _check_rows(rows: Iterator[tuple[int, str, int]], path: Path) -> None:
    errors: list[UserError] = []
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
