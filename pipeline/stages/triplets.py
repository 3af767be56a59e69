"""Triplets for contrastive training: validated, split without leaks, tokenized once; for a scratch model, the model.

    python -m pipeline.stages.triplets logs/robust-tiny triplets

CPU work: no later stage reads a data source or tokenizes training rows.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline import dag
from pipeline.recipe import Recipe
from pipeline.recipe_contrastive import PARTS, Part, Triplets
from pipeline.records import remove, seal, whole, write_json
from pipeline.run import RunDir
from pipeline.stages.rows import write_rows
from pipeline.tasks.injection import Triplet, write_triplets
from pipeline.tasks.injection_splits import Splits, is_held_out, make_splits, template

SCRATCH = "base"
"""Folder of the scratch model within the processed data set: its tokenizer made the tokens."""


def main(logs: Path, stage: str) -> None:
    """Make sure of the processed triplets of the run, and of the scratch model where the recipe has one."""
    run = RunDir.of_logs(logs)
    recipe, _ = run.read_resolved()
    folder = dag.dataset_of(recipe, run)
    started = time.monotonic()
    reused = whole(folder)
    if reused:
        print(f"the processed triplets are there already: {folder}", flush=True)
    else:
        draft = run.dataset_draft(folder.name)
        remove([draft])
        draft.mkdir(parents=True)
        make_dataset(recipe, stage, draft)
        seal(draft)
        remove([folder])
        draft.rename(folder)
    if recipe.model.scratch:
        remove([run.model("base")])
        shutil.copytree(folder / SCRATCH, run.model("base"))
    run.log_metrics(stage, {"reused": reused, "seconds": time.monotonic() - started})


def make_dataset(recipe: Recipe, stage: str, folder: Path) -> None:
    """Write the triplets of every part, their token ids, the prompts to attack with, the summary, the scratch model."""
    from pipeline.training.contrastive_data import TripletEncoder, write_triplet_tokens
    from pipeline.training.models import load_base_tokenizer

    own: Triplets = recipe.own(stage)
    splits = make_splits(recipe.data.source, own, recipe.seed)
    if recipe.model.scratch:
        _make_scratch(recipe, folder / SCRATCH, splits.rows["train"])
    source = str(folder / SCRATCH) if recipe.model.scratch else str(recipe.model.base)
    encoder = TripletEncoder(load_base_tokenizer(source, recipe.model), own.max_length)
    statistics = {}
    for name, rows in splits.rows.items():
        write_triplets(folder / f"{name}.triplets.jsonl", rows)
        statistics[name] = write_triplet_tokens(folder / f"{name}.arrow", rows, encoder)
    write_rows(folder / "test.jsonl", _questions(splits, encoder))
    summary = _summary(recipe, splits, statistics)
    write_json(folder / "summary.json", summary)
    print(json.dumps(summary, indent=1), flush=True)
    for note in _notes(splits):
        print(f"note: {note}", flush=True)


def _make_scratch(recipe: Recipe, folder: Path, rows: list[Triplet]) -> None:
    from pipeline.training.scratch import save_scratch

    assert recipe.model.scratch is not None
    texts = [
        f"{row.system_instruction}\n{row.user(part)}\n{row.expected(part) or ''}" for row in rows for part in PARTS
    ]
    parameters = save_scratch(recipe.model.scratch, texts, folder, recipe.seed)
    print(f"a model of {parameters / 1e6:.2f} M parameters from scratch", flush=True)


def _questions(splits: Splits, encoder: Any) -> Iterator[dict[str, Any]]:
    """The test rows as the robustness stage asks them: the first benign input and the injection of each triplet."""
    parts: tuple[Part, ...] = ("benign", "injection")
    for index, row in enumerate(splits.rows["test"]):
        for part in parts:
            prompt, _ = encoder.prompt(row, part)
            yield {
                "id": f"{row.id}/{part}",
                "row": index,
                "part": part,
                "prompt": prompt,
                "user": row.user(part),
                "system": row.system_instruction,
                "expected": row.expected(part),
                "benign_expected": row.expected("benign"),
                "canary": row.metadata.canary if part == "injection" else None,
                "unseen": is_held_out(row, splits.held_out),
                "template": template(row),
                "attack_type": row.attack_type,
                "attack_technique": row.attack_technique,
                "difficulty": row.difficulty,
            }


def _summary(recipe: Recipe, splits: Splits, statistics: dict[str, Any]) -> dict[str, Any]:
    """What the data set holds: rows, attacks, lengths and cuts of each part; what leaks and what was left out."""
    parts = {
        name: {
            "rows": len(rows),
            "techniques": dict(Counter(row.attack_technique for row in rows).most_common()),
            "difficulties": dict(Counter(row.difficulty for row in rows).most_common()),
            "unseen_rows": sum(is_held_out(row, splits.held_out) for row in rows),
            **statistics[name],
        }
        for name, rows in splits.rows.items()
    }
    return {"source": recipe.data.source, "held_out": splits.held_out, "parts": parts, "leaks": splits.leaks,
            "left_out": splits.left_out}  # fmt: skip


def _notes(splits: Splits) -> Iterator[str]:
    """What a person should know before training."""
    for name, leak in splits.leaks.items():
        if leak["near_duplicate_attacks"]:
            yield (f"{leak['near_duplicate_attacks']} of {leak['rows']} {name} attacks are near-duplicates of training "
                   f"attacks; {leak['left_out']} were left out")  # fmt: skip
        if leak["benign_pairs_of_training"]:
            yield f"{leak['benign_pairs_of_training']} of {leak['rows']} {name} rows have a benign pair of training"


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
