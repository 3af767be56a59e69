"""What a server answered, as `gpt_predictions_<model>_<timestamp>.json`: the file that teaches (docs/evaluation.md)."""

from __future__ import annotations

import datetime
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from pipeline.evaluation.ask import judge_all
from pipeline.evaluation.endpoint import Endpoint, complete_remotely
from pipeline.evaluation.generate import Completion
from pipeline.evaluation.partial import PartialAnswers
from pipeline.evaluation.predictions import Header, Predictions
from pipeline.records import remove, write_json
from pipeline.run import now
from pipeline.tasks.corr2cause import message
from pipeline.tasks.rows import read
from pipeline.tasks.source import read_csv

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Price:
    """What a million tokens cost, in any currency."""

    prompt: float
    completion: float


@dataclass(frozen=True)
class Answered:
    """What was asked and written."""

    path: Path
    predictions: Predictions
    usage: dict[str, float | None]


def rows_of_file(path: Path, prompt: str, limit: int | None) -> list[dict[str, Any]]:
    """The rows of a file in the released format, its labels kept, as they are put to a server.

    Raises UserError for a row that cannot be read.
    """
    found = []
    for number, text, label in islice(read_csv(path), limit):
        row = read(text, label)
        asked = message(row.premise, row.hypothesis, prompt)
        found.append({**vars(row), "label": label, "id": str(number), "row": number, "message": asked, "prompt": asked})
    return found


def ask_endpoint(
    endpoint: Endpoint, rows: Sequence[Row], folder: Path, header: Header, price: Price | None = None
) -> Answered:
    """Ask for every row, go on from where an interrupted call got to, write the file into `folder`.

    Rows have `message` beside what a test row has. Raises as `complete_remotely`.
    """
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", endpoint.model)
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
    asked = f"{header.data_fingerprint} {header.model} {sorted(header.generation.items())}"
    part = folder / f".gpt_predictions_{name}_{hashlib.sha256(asked.encode()).hexdigest()[:12]}.partial"
    answers = PartialAnswers(part, header)
    if answers.known:
        print(f"{endpoint.model}: {len(answers.known)} rows are answered already", flush=True)
    completions = complete_remotely(
        endpoint, [row["message"] for row in rows], progress=endpoint.model, known=answers.known, on_batch=answers.add
    )
    predictions = Predictions(header, judge_all(rows, completions))
    used = usage(completions, price)
    path = folder / f"gpt_predictions_{name}_{stamp}.json"
    told = [{**each.model_dump(), "prompt": row["message"]} for each, row in zip(predictions.rows, rows, strict=True)]
    write_json(path, {"header": {**header.model_dump(), "usage": used}, "predictions": told})
    remove([part])
    return Answered(path, predictions, used)


def usage(completions: Sequence[Completion], price: Price | None) -> dict[str, float | None]:
    """Tokens as the server counted them, and what they cost; null is not known."""
    prompt, completion = sum(each.prompt_tokens for each in completions), sum(each.tokens for each in completions)
    if not prompt:
        return {"prompt_tokens": None, "completion_tokens": None, "cost": None}
    cost = (prompt * price.prompt + completion * price.completion) / 1e6 if price else None
    return {"prompt_tokens": prompt, "completion_tokens": completion, "cost": cost}


def header_for(endpoint: Endpoint, rows: Sequence[Row], recipe: str, run: str, stage: str, data: str | None) -> Header:
    """The header of what a server answers; `data` is the fingerprint of the rows where they have one."""
    text = json.dumps([dict(row) for row in rows], sort_keys=True)
    return Header(
        model=f"{endpoint.model} at {endpoint.url}",
        revision=None,
        model_fingerprint=hashlib.sha256(f"{endpoint.url} {endpoint.model}".encode()).hexdigest()[:16],
        recipe=recipe,
        run=run,
        stage=stage,
        data_fingerprint=data or hashlib.sha256(text.encode()).hexdigest()[:16],
        seed=endpoint.seed,
        created=now(),
        generation={
            "engine": "endpoint", "temperature": endpoint.temperature, "max_tokens": endpoint.max_tokens,
            "extra": json.dumps(dict(endpoint.extra), sort_keys=True),
        },
        versions={},
        rows=len(rows),
    )  # fmt: skip
