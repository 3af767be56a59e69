"""Rows, prompts and completions for every part of a run, tokenized; for a scratch model, the model itself.

    python -m pipeline.stages.preprocess logs/tiny preprocess

CPU work: no later stage reads a data source or tokenizes training rows.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from itertools import tee
from pathlib import Path
from typing import Any

from pipeline import dag
from pipeline.causal.generate import Row
from pipeline.recipe import Recipe
from pipeline.records import read_json, remove, seal, whole, write_json
from pipeline.run import RunDir
from pipeline.stages.asking import AnyRow, counts, message, question_completions, record
from pipeline.stages.completions import add_completions, sft_stages
from pipeline.stages.rows import write_rows
from pipeline.tasks.questions import Questions, load_questions
from pipeline.tasks.rows import Parts, load_rows
from pipeline.trainer_options import option_default
from pipeline.training.entry import run_stage

SCRATCH = "base"
"""Folder of the scratch model within the processed data set: its tokenizer made the tokens."""
TRAINED = "training_classes.json"
"""Names of the classes of the training rows: no test row may have one of them."""
TOKENIZER_ROWS = 20000
"""Rows that a scratch tokenizer is trained on: more add no statement that these lack."""


def main(logs: Path, stage: str) -> None:
    """Make sure of the processed data set of the run, and of the scratch model where the recipe has one.

    The data set is keyed by all that it depends on; one that an earlier run made whole is used as it is.
    """
    run = RunDir.of_logs(logs)
    recipe, _ = run.read_resolved()
    folder = dag.dataset_of(recipe, run)
    started = time.monotonic()
    facts: dict[str, Any] = {"reused": whole(folder)}
    if facts["reused"]:
        print(f"the processed data set is there already: {folder}", flush=True)
    else:
        draft = run.dataset_draft(folder.name)
        remove([draft])
        draft.mkdir(parents=True)
        make_dataset(recipe, draft)
        seal(draft)
        if whole(folder):  # another run made the same meanwhile, and may be reading it
            remove([draft])
        else:
            remove([folder])
            draft.rename(folder)
    for name in sft_stages(recipe):
        check_stage_lengths(recipe, folder, name)
    check_context(recipe, folder)
    if recipe.model.scratch:
        remove([run.model("base")])
        shutil.copytree(folder / SCRATCH, run.model("base"))
    summary = read_json(folder / "summary.json")
    facts |= {"rows": sum(part["rows"] for part in summary["parts"].values()), **summary["completions"]}
    run.log_metrics(stage, {**facts, "seconds": time.monotonic() - started})


def make_dataset(recipe: Recipe, folder: Path) -> None:
    """Write the rows of every part, the token ids of SFT stages, the summary, and the scratch model if there is one."""
    from pipeline.training.models import end_of_turn, load_base_tokenizer

    os.environ["TOKENIZERS_PARALLELISM"] = "true"  # the job body turns it off, for processes that fork; none does here
    started = time.monotonic()
    parts, completions, figures = load_parts(recipe)
    for note in parts.notes:
        print(f"note: {note}", flush=True)
    print(f"{sum(map(len, parts.rows.values()))} rows in {time.monotonic() - started:.0f} s", flush=True)
    if recipe.model.scratch:
        make_scratch(recipe, folder / SCRATCH, parts, completions)
    source = str(folder / SCRATCH) if recipe.model.scratch else str(recipe.model.base)
    tokenizer = load_base_tokenizer(source, recipe.model)
    for name in completions:
        write_tokens(recipe, folder, name, parts.rows[name], completions[name], tokenizer, end_of_turn(tokenizer))
    for name in parts.rows.keys() - completions.keys():
        write_rows(folder / f"{name}.jsonl", prompts(recipe, parts.rows[name], tokenizer))
    trained = (row for name in recipe.training_stages() for row in parts.rows[name])
    write_json(folder / TRAINED, sorted({row.mec for row in trained if isinstance(row, Row)}))
    write_summary(recipe, folder, parts, tokenizer, figures)


def load_parts(recipe: Recipe) -> tuple[Parts | Questions, dict[str, list[str]], dict[str, Any]]:
    """(rows of every part, a completion for each row of each SFT stage, figures about these)."""
    if recipe.task != "corr2cause":
        questions = load_questions(recipe)
        return questions, question_completions(questions, sft_stages(recipe)), {}
    training = recipe.training_stages()
    if recipe.data.completions == "teacher":
        training = [name for name in training if name not in sft_stages(recipe)]
    parts = load_rows(recipe.data, training, recipe.seed)
    return parts, *add_completions(recipe, parts)


def make_scratch(recipe: Recipe, folder: Path, parts: Parts | Questions, completions: dict[str, list[str]]) -> None:
    """Train the tokenizer on what the training stages will read, make the model, save both."""
    from pipeline.training.scratch import save_scratch

    assert recipe.model.scratch is not None
    texts: list[str] = []
    for name in recipe.training_stages():
        texts += [message(recipe, row) for row in parts.rows[name][:TOKENIZER_ROWS]]
        texts += completions.get(name, [])[:TOKENIZER_ROWS]
    parameters = save_scratch(recipe.model.scratch, texts, folder, recipe.seed)
    print(f"a model of {parameters / 1e6:.2f} M parameters from scratch", flush=True)


def prompts(recipe: Recipe, rows: Sequence[AnyRow], tokenizer: Any) -> Iterator[dict[str, Any]]:
    """Rows as GRPO and evaluation read them: the message, the prompt through the chat template, the reference."""
    from pipeline.training.models import render_prompts

    texts, again = tee(message(recipe, row) for row in rows)
    rendered = zip(rows, texts, render_prompts(tokenizer, again), strict=True)
    for index, (row, text, prompt) in enumerate(rendered):
        yield {**record(row, index), "message": text, "prompt": prompt}


def write_tokens(
    recipe: Recipe, folder: Path, name: str, rows: Sequence[AnyRow], completions: list[str], tokenizer: Any, end: int
) -> None:
    """Save the token ids and labels of an SFT stage."""
    from pipeline.training.encode import encode, write_encoded
    from pipeline.training.models import render_prompts

    def rendered(some: Sequence[AnyRow]) -> Iterator[str]:
        return render_prompts(tokenizer, (message(recipe, row) for row in some))

    tables = encode(tokenizer, rendered(rows), completions, end)
    write_encoded(folder / f"{name}.arrow", tables, len(rows), name)
    examples = [{"prompt": p, "completion": c} for p, c in zip(rendered(rows[:3]), completions[:3], strict=True)]
    print(f"first example of {name}:\n{examples[0]['prompt']}\n{examples[0]['completion']}", flush=True)
    write_rows(folder / f"{name}.examples.jsonl", examples)


def check_stage_lengths(recipe: Recipe, folder: Path, name: str) -> None:
    """Raise UserError for rows above the max_length of an SFT stage, which is no setting of the data set."""
    from pipeline.training.encode import check_lengths, token_counts

    options = recipe.trainer_options(name)
    limit = options["max_length"] if "max_length" in options else option_default("sft", "max_length")
    check_lengths(token_counts(folder / f"{name}.arrow"), limit, f"{name}.max_length")


def check_context(recipe: Recipe, folder: Path) -> None:
    """Raise UserError for rows that are longer than what the model was made for."""
    from pipeline.training.encode import check_lengths, token_counts
    from pipeline.training.models import context_length

    source = str(folder / SCRATCH) if recipe.model.scratch else str(recipe.model.base)
    context = context_length(source, recipe.model)
    for name in sft_stages(recipe):
        check_lengths(token_counts(folder / f"{name}.arrow"), context, f"{name} (the context of model.base)")


def write_summary(
    recipe: Recipe, folder: Path, parts: Parts | Questions, tokenizer: Any, figures: dict[str, Any]
) -> None:
    """What the data set holds: rows, what they are of each part, and what was left out."""
    counted = {name: counts(rows) for name, rows in parts.rows.items()}
    summary = {"source": recipe.data.source, "parts": counted, "left_out": parts.left_out, "notes": parts.notes,
               "completions": figures, "vocabulary": len(tokenizer)}  # fmt: skip
    write_json(folder / "summary.json", summary)
    print(json.dumps(summary, indent=1), flush=True)


if __name__ == "__main__":
    run_stage(main)
