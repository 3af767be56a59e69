"""Processed rows on disk: one JSON object a line, as preprocess writes and the other stages read them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

PROMPT_COLUMNS = ("premise", "hypothesis", "label")
QUESTION_COLUMNS = ("task", "template", "published")


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows as JSON lines."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSON lines file."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def prompt_dataset(path: Path) -> Any:
    """A datasets.Dataset for GRPOTrainer: conversational `prompt` and the columns that the scorer reads."""
    from datasets import Dataset

    rows = read_rows(path)
    prompts = [[{"role": "user", "content": row["message"]}] for row in rows]
    return Dataset.from_dict({"prompt": prompts, **columns_of(rows)})


def columns_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The columns that reward functions read."""
    if "published" not in rows[0]:
        return {key: [row[key] for row in rows] for key in PROMPT_COLUMNS}
    columns = {key: [row[key] for row in rows] for key in QUESTION_COLUMNS}
    return {**columns, "published": [json.dumps(each) for each in columns["published"]]}  # rows of one set differ
