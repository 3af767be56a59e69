"""Files of rows in the released format, read one by one so that a bad row does not end the work."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from pipeline.errors import UserError

_LONGEST_FIELD = 1 << 30
"""Bytes; the library's own limit of 131072 is less than a premise on ten variables needs."""


def read_rows(path: Path) -> Iterator[dict[str, str]]:
    """The rows of a CSV or parquet file as texts, with progress on a terminal.

    A row with too few columns has no key for them. Raises UserError for a file that is not there, not UTF-8, not a
    table, empty, or without the column `input`.
    """
    if not path.is_file():
        raise UserError("no such file", value=path.name, where=str(path.parent), do="check the path")
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), console=Console(stderr=True),
        transient=True,
    ) as progress:  # fmt: skip
        task = progress.add_task(path.name, total=path.stat().st_size)
        rows = _parquet(path) if path.suffix == ".parquet" else _csv(path)
        count = 0
        for record in rows:
            count += 1
            progress.advance(task, sum(map(len, record.values())) + 4)
            yield record
    if not count:
        raise UserError("a file without rows", value=path.name, where=str(path), do="give rows")


def _csv(path: Path) -> Iterator[dict[str, str]]:
    csv.field_size_limit(_LONGEST_FIELD)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            _needs_input(list(reader.fieldnames or ()), path)
            for record in reader:
                yield {key: text for key, text in record.items() if isinstance(key, str) and isinstance(text, str)}
    except UnicodeDecodeError as error:
        raise UserError("not UTF-8 text", value=f"byte {error.start}", where=str(path), do="save it as UTF-8") from None
    except csv.Error as error:
        raise UserError("not a CSV file", value=str(error), where=str(path), do="save it as comma-separated") from None
    except OSError as error:
        raise UserError("cannot read", value=error.strerror, where=str(path), do="check its permissions") from None


def _parquet(path: Path) -> Iterator[dict[str, str]]:
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
        _needs_input(list(file.schema_arrow.names), path)
        for batch in file.iter_batches():
            for record in batch.to_pylist():
                yield {key: str(value) for key, value in record.items() if value is not None}
    except pyarrow.ArrowInvalid as error:
        raise UserError("not a parquet file", value=str(error)[:80], where=str(path), do="check the file") from None


def _needs_input(columns: list[str], path: Path) -> None:
    if "input" not in columns:
        raise UserError(
            "the column `input` is missing; the file has", value=columns, where=str(path),
            do="use the released format: input,label,num_variables,template",
        )  # fmt: skip
