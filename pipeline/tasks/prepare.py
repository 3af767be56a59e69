"""A teacher's right answers as a data set on disk: training and validation rows, a summary, a file for recipes."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.causal.generate import Row
from pipeline.errors import UserError
from pipeline.flat_keys import TAUGHT
from pipeline.recipe_data import Data
from pipeline.records import remove, write_atomic, write_json
from pipeline.tasks.corr2cause import message, score
from pipeline.tasks.teacher import taught

SUMMARY = "sft_data_summary.json"


@dataclass(frozen=True)
class Example:
    """A row and a right answer to it."""

    row: Row
    completion: str

    def columns(self, prompt: str) -> dict[str, Any]:
        """As it stands in the data set; `prompt` names the wording."""
        row = self.row
        return {"prompt": message(row.premise, row.hypothesis, prompt), "completion": self.completion,
                "premise": row.premise, "hypothesis": row.hypothesis, "label": row.label}  # fmt: skip


def prepare(
    data: Data, out: Path, *, validation: float = 0.15, check_steps: bool = False, seed: int = 42
) -> dict[str, Any]:
    """Write the data set of a teacher's right answers (`data.teacher`) into `out`; its summary.

    `check_steps` also leaves out answers with a reasoning step that the causal engine finds false. A `validation`
    share of the rows of each label is kept from training. Raises UserErrors for a broken file, an `out` that holds
    something else, or when nothing is left.
    """
    if out.exists() and not (out / SUMMARY).is_file():
        raise UserError("the output folder is there and is no prepared data set", value=str(out), where="--out",
                        do="give another")  # fmt: skip
    found = taught(data, set())
    examples = [Example(row, text) for row, text in zip(found.rows, found.completions, strict=True)]
    sound = [each for each in examples if not check_steps or _is_sound(each)]
    if not sound:
        raise UserError("every right answer has a false reasoning step", value=len(examples), where=str(data.teacher),
                        do="leave --check-steps out")  # fmt: skip
    parts = split(sound, validation, seed)
    summary = {
        "source": str(data.teacher), "labels": data.labels, "validation_share": validation, "seed": seed,
        **{key: found.counts[key] for key in ("predictions", "used", "wrong", "unparsable", "unmatched", "held_out",
                                              "repeated", "differs_from_file")},
        "false_steps": len(examples) - len(sound) if check_steps else None,
        "parts": {name: _figures(part) for name, part in parts.items()},
    }  # fmt: skip
    _write(out, parts, data.prompt, summary)
    return summary


def _is_sound(each: Example) -> bool:
    return all(step.true for step in score(each.completion, vars(each.row)).steps)


def split(examples: list[Example], validation: float, seed: int) -> dict[str, list[Example]]:
    """Examples for training and validation, each label shared out alike, in the order in which they came."""
    kept_out: set[int] = set()
    for label in (0, 1):
        places = [place for place, each in enumerate(examples) if each.row.label == label]
        kept_out.update(random.Random(f"{seed}/{label}").sample(places, round(validation * len(places))))
    return {
        "train": [each for place, each in enumerate(examples) if place not in kept_out],
        "validation": [each for place, each in enumerate(examples) if place in kept_out],
    }


def _figures(part: list[Example]) -> dict[str, Any]:
    labels = Counter("Yes" if each.row.label else "No" for each in part)
    words = [len(each.completion.split()) for each in part]
    return {"rows": len(part), **{word: labels[word] for word in ("Yes", "No")},
            "mean_words": round(sum(words) / max(1, len(words)), 1), "most_words": max(words, default=0)}  # fmt: skip


def _write(out: Path, parts: dict[str, list[Example]], prompt: str, summary: dict[str, Any]) -> None:
    """The summary last: without it the folder is no prepared data set, and never loses what stood there before."""
    from datasets import Dataset, DatasetDict

    remove([out])
    columns = {name: [each.columns(prompt) for each in part] for name, part in parts.items()}
    DatasetDict({name: Dataset.from_list(rows) for name, rows in columns.items() if rows}).save_to_disk(str(out))
    lines = [{"header": {"source": summary["source"], "part": "train"}}]
    lines += [{key: value for key, value in row.items() if key != "prompt"} for row in columns["train"]]
    write_atomic(out / TAUGHT, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    write_json(out / SUMMARY, summary)
