"""Ask every model of a run the same questions, judge the answers, compare: evaluation of tasks without classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline import dag
from pipeline.errors import UserError
from pipeline.evaluation.compare import write_comparison
from pipeline.evaluation.generate import Completion, complete
from pipeline.evaluation.partial import PartialAnswers
from pipeline.evaluation.predictions import Header
from pipeline.evaluation.report import write_report
from pipeline.evaluation.schema import Comparison
from pipeline.evaluation.solved import Answer, Solved, SolvedFile, compare_solved, read_solved, write_solved
from pipeline.recipe import Recipe
from pipeline.recipe_evaluate import Evaluate
from pipeline.records import remove
from pipeline.run import RunDir
from pipeline.tasks.names import score_all
from pipeline.training.stop import StopFlag, end_stopped

Row = Mapping[str, Any]


def solve(recipe: Recipe, run: RunDir, stage: str, rows: Sequence[Row], header: Header, stop: StopFlag) -> None:
    """Write the prediction file of one model, named in the header; one that the same evaluation wrote is kept.

    Ends this process when the stage shall stop, what was answered so far kept.
    """
    from pipeline.training.models import load_for_inference

    own: Evaluate = recipe.own(stage)
    path, name = run.predictions(header.stage), header.stage
    if path.exists() and _same(path, rows, header):
        print(f"{name}: predictions are there already", flush=True)
        return
    known = PartialAnswers(run.partial_predictions(name), header)
    prompts = [str(row["prompt"]) for row in rows for _ in range(own.samples)]

    def keep(made: dict[int, Completion]) -> None:
        known.add(made)
        if stop.is_set():
            end_stopped(f"after {len(known.known)} of {len(prompts)} answers of {name}")

    model, tokenizer = load_for_inference(header.model, recipe.model)
    completions = complete(
        model, tokenizer, prompts, max_new_tokens=own.max_new_tokens, batch_size=own.batch_size,
        temperature=own.temperature, seed=recipe.seed, progress=name, known=known.known, on_batch=keep,
    )  # fmt: skip
    write_solved(path, SolvedFile(header=header, rows=judged(rows, completions)))
    remove([known.path])
    run.log_metrics(stage, {"model": name, "rows": len(rows)})


def judged(rows: Sequence[Row], completions: Sequence[Completion]) -> list[Solved]:
    """The rows with their answers; completions of one row stand together, as many for each."""
    drawn = len(completions) // max(len(rows), 1)
    cases = [
        (row["task"], one.text, row["published"]) for row, one in zip(_repeated(rows, drawn), completions, strict=True)
    ]
    answers = [
        Answer(completion=one.text, parsed=score.parsed, correct=score.correct, reason=score.reason, share=score.share,
               tokens=one.tokens, ended=one.ended)
        for one, score in zip(completions, score_all(cases), strict=True)
    ]  # fmt: skip
    return [
        Solved(id=row["id"], row=row["row"], task=row["task"], prompt=row["prompt"],
               answers=answers[place * drawn : (place + 1) * drawn])
        for place, row in enumerate(rows)
    ]  # fmt: skip


def _repeated(rows: Sequence[Row], times: int) -> list[Row]:
    return [row for row in rows for _ in range(times)]


def compared(recipe: Recipe, run: RunDir, stage: str, rows: Sequence[Row]) -> Comparison:
    """Write the comparison of all models with predictions for these rows, and the report; the comparison."""
    own: Evaluate = recipe.own(stage)
    found: dict[str, SolvedFile] = {}
    refused: dict[str, str] = {}
    for path in run.prediction_files():
        try:
            found[path.stem] = read_solved(path, rows, dag.dataset_of(recipe, run).name)
        except UserError as error:
            refused[path.stem] = str(error)
    comparison = compare_solved(found, recipe.training_stages(), recipe.task, own.bootstrap, recipe.seed, refused)
    write_comparison(run.comparison, comparison)
    run.log_metrics(stage, {f"accuracy {each}": result.accuracy.value for each, result in comparison.solved.items()})
    print(f"report: {write_report(run)}", flush=True)
    return comparison


def _same(path: Path, rows: Sequence[Row], header: Header) -> bool:
    """Whether the same evaluation wrote this file."""
    try:
        before = read_solved(path, rows, header.data_fingerprint)
    except UserError as error:
        print(f"predictions are made anew: {error}", flush=True)
        return False
    return before.header.model_copy(update={"created": header.created}) == header
