"""Rows of published questions from files in their published formats, from the hub, or made here."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.question_recipe import source_of, task_of
from pipeline.recipe import Recipe
from pipeline.settings import raise_all
from pipeline.tasks import arithmetic, mbpp
from pipeline.tasks.names import TASKS, check_row
from pipeline.tasks.source import MAX_REPORTED, is_file_source, is_folder_source
from pipeline.training.hub import data_item

SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".parquet")
_OTHER_NAMES = {"validation": ("validation", "dev", "val")}


@dataclass(frozen=True)
class Origin:
    """Where the rows of a part come from."""

    task: str
    source: str
    split: str | None
    """None where the source is one file without splits, or has only one."""
    revision: str | None = None
    """Of a hub data set: the commit that is in the cache."""

    @property
    def path(self) -> Path | None:
        """The file or folder on this machine; None for what is none."""
        here = is_file_source(self.source) or is_folder_source(self.source)
        return Path(self.source).expanduser() if here else None


def origin(recipe: Recipe, name: str) -> Origin:
    """Where the rows of a training stage, `dev` or `test` come from.

    Raises UserError for a split that the published set does not have.
    """
    part, task = recipe.data.parts.get(name), task_of(recipe, name)
    told, split = source_of(recipe, name), part.split if part else None
    source = told.name
    splits = TASKS[task].SPLITS
    if is_file_source(source) or source == "generated":
        return Origin(task, source, split)
    if is_folder_source(source):
        return Origin(task, source, split or ("test" if name == "test" else "train"))
    wanted = split or ("test" if name == "test" and "test" in splits else "train")
    if split is None and wanted not in splits:
        raise UserError(
            f"{task} has no split {wanted}: it has", value=", ".join(splits), where=f"data.parts.{name}",
            do=f"give data.parts.{name} another task or source, or name its split",
        )  # fmt: skip
    return Origin(task, source, wanted, told.revision)


def rows_of(where: Origin) -> list[tuple[int, dict[str, Any]]]:
    """(row, counted from 0 in its file or split, and its fields) for all rows.

    Raises UserErrors that name row and field, at most ten, for rows in another format; UserError for a source that
    cannot be read.
    """
    rows = list(_read(where))
    errors: list[UserError] = []
    for number, row in enumerate(rows):
        try:
            check_row(where.task, row, f"row {number} of {where.source}")
        except UserError as error:
            errors.append(error)
        if len(errors) == MAX_REPORTED:
            break
    raise_all(errors)
    numbered = list(enumerate(rows))
    if where.task == "mbpp" and where.split and where.path and where.path.is_file():
        return [(number, row) for number, row in numbered if mbpp.split_of(row) == where.split]
    return numbered


def check_files(recipe: Recipe, training: list[str]) -> None:
    """Read every file that the recipe names. Raises UserErrors as `rows_of`; what is no file here is not looked at."""
    for name in ("test", *training):
        where = origin(recipe, name)
        if where.path is not None:
            rows_of(where)


def _read(where: Origin) -> Iterator[dict[str, Any]]:
    if where.source == "generated":
        if where.task != "arithmetic":
            raise UserError("no rows can be generated for", value=where.task, where="data.source", do="take it out")
        return iter(arithmetic.rows())
    path = where.path
    if path is None:
        return _hub(where)
    return file_rows(_in_folder(path, where.split or "train") if path.is_dir() else path)


def _in_folder(folder: Path, split: str) -> Path:
    for name in _OTHER_NAMES.get(split, (split,)):
        for suffix in SUFFIXES:
            if (folder / f"{name}{suffix}").is_file():
                return folder / f"{name}{suffix}"
    raise UserError(
        f"no file of the split {split}", value=str(folder), where="data.source",
        do=f"put {split}.jsonl (or {', '.join(SUFFIXES[1:])}) there",
    )  # fmt: skip


def file_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file of JSON lines (also compressed), of one JSON list, or of Parquet. Raises UserError."""
    if not path.is_file():
        raise UserError("no such data file", value=str(path), where="data.source", do="check the path")
    if path.suffix == ".parquet":
        yield from _parquet(path)
        return
    try:
        packed = path.read_bytes()
        text = (gzip.decompress(packed) if path.suffix == ".gz" else packed).decode("utf-8-sig")
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError) as error:
        raise UserError("not UTF-8 text", value=str(error)[:60], where=str(path), do="save it as UTF-8") from None
    except OSError as error:
        raise UserError("cannot read", value=error.strerror, where=str(path), do="check its permissions") from None
    if not text.strip():
        raise UserError("a data file without rows", value=path.name, where=str(path), do="give rows")
    lines = [text] if text.lstrip().startswith("[") else text.split("\n")
    for number, line in enumerate(lines):
        yield from _objects(line, number, path) if line.strip() else ()


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow
    from pyarrow import parquet

    try:
        yield from parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError("not a Parquet file", value=str(error)[:60], where=str(path), do="make it again") from None


def _objects(line: str, number: int, path: Path) -> list[dict[str, Any]]:
    try:
        found = json.loads(line)
    except ValueError as error:
        where = f"{path}, line {getattr(error, 'lineno', 1) + number}"
        raise UserError("not JSON", value=line[:60], where=where, do=f"mend it: {error}") from None
    rows = found if isinstance(found, list) else [found]
    if not all(isinstance(row, dict) for row in rows):
        raise UserError("a row is a JSON object", value=line[:60], where=f"{path}, line {number + 1}", do="mend it")
    return rows


def _hub(where: Origin) -> Iterator[dict[str, Any]]:
    from datasets import load_dataset

    folder = data_item(where.source, where.revision, "data").folder(os.environ)
    configuration = where.source.partition(":")[2] or None
    try:
        rows = load_dataset(str(folder), configuration, split=where.split)
    except (OSError, ValueError) as error:
        raise UserError(
            "cannot load the data set", value=where.source, where=f"data.source ({str(error)[:150]})",
            do="check the name and `prefetch` it, or give a file",
        ) from error  # fmt: skip
    yield from (dict(row) for row in rows)
