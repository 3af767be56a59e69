"""Ask every model of the run the same test rows, count, compare, report.

python -m pipeline.stages.evaluate logs/tiny evaluate
python -m pipeline.stages.evaluate logs/tiny evaluate --model models/tiny_sft_model --name again
"""

from __future__ import annotations

import argparse
import hashlib
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipeline import dag
from pipeline.errors import UserError
from pipeline.evaluation.compare import compare, fail_for_refused, write_comparison
from pipeline.evaluation.generate import Completion, complete
from pipeline.evaluation.partial import PartialAnswers
from pipeline.evaluation.predictions import (
    Header,
    Prediction,
    Predictions,
    Step,
    check_against,
    read_all,
    read_predictions,
    write_predictions,
)
from pipeline.evaluation.report import write_report
from pipeline.evaluation.schema import BASE
from pipeline.recipe import Evaluate, Recipe
from pipeline.recipe_questions import task_of
from pipeline.records import file_hash, remove
from pipeline.rewards.sandbox import require_sandbox
from pipeline.run import RunDir, now
from pipeline.stages.rows import read_rows
from pipeline.stages.solving import compared as solved_comparison
from pipeline.stages.solving import solve
from pipeline.tasks.corr2cause import score
from pipeline.training.ranks import rank, redirect_output
from pipeline.training.stop import StopFlag, end_stopped

PACKAGES = ("torch", "transformers", "trl", "peft")


def main(logs: Path, stage: str, model: Path | None = None, name: str | None = None) -> None:
    """Write prediction files, comparison.json and report.html; with `model`, add that folder under `name`."""
    redirect_output()
    stop = StopFlag()
    if rank():
        return
    run = RunDir.of_logs(logs)
    recipe, _ = run.read_resolved()
    data = dag.dataset_of(recipe, run)
    rows = read_rows(data / "test.jsonl")
    models = {name or stage: str(model)} if model else run_models(recipe, run)
    if not model:
        run.cut_metrics(stage, 0)  # an interrupted evaluation logs all its models again
    if recipe.task != "corr2cause":
        require_sandbox([task_of(recipe, "test")])
        for each, source in models.items():
            solve(recipe, run, stage, rows, make_header(recipe, run, stage, each, source, data.name, len(rows)), stop)
        comparison = solved_comparison(recipe, run, stage, rows)
        fail_for_refused(comparison, [each for each in models if each != BASE or not recipe.model.scratch])
        return
    for each, source in models.items():
        predictions = predict(recipe, run, stage, each, source, rows, data.name, stop)
        run.log_metrics(stage, {"model": each, "rows": len(predictions.rows)})
    found, refused = read_all(run.prediction_files(), rows, data.name)
    own: Evaluate = recipe.own(stage)
    comparison = compare(found, recipe.training_stages(), recipe.task, own.bootstrap, recipe.seed, refused)
    write_comparison(run.comparison, comparison)
    run.log_metrics(stage, {f"f1 {each}": result.f1.value for each, result in comparison.models.items()})
    print(f"report: {write_report(run)}", flush=True)
    # a model from scratch that was never trained may well say nothing
    fail_for_refused(comparison, [each for each in models if each != BASE or not recipe.model.scratch])


def run_models(recipe: Recipe, run: RunDir) -> dict[str, str]:
    """The models of a run in order: the base model and that of each training stage."""
    from pipeline.training.models import base_source

    return {BASE: base_source(recipe, run), **{each: str(run.model(each)) for each in recipe.training_stages()}}


def predict(
    recipe: Recipe,
    run: RunDir,
    stage: str,
    name: str,
    source: str,
    rows: list[dict[str, Any]],
    data: str,
    stop: StopFlag,
) -> Predictions:
    """The predictions of one model; those on disk are kept where model, rows and settings are the same.

    Ends this process when the stage shall stop, what was answered so far kept.
    """
    own: Evaluate = recipe.own(stage)
    header = make_header(recipe, run, stage, name, source, data, len(rows))
    path = run.predictions(name)
    before = kept_predictions(path, header)
    if before is not None:
        check_against(before, rows, data, path)
        print(f"{name}: predictions are there already", flush=True)
        return before
    answers = PartialAnswers(run.partial_predictions(name), header)
    predictions = Predictions(header, ask(recipe, own, name, source, rows, answers, stop))
    write_predictions(path, predictions)
    remove([answers.path])
    return predictions


def make_header(recipe: Recipe, run: RunDir, stage: str, name: str, source: str, data: str, rows: int) -> Header:
    """What stands at the top of a model's prediction file."""
    return Header(
        model=source,
        revision=recipe.model.revision if source == recipe.model.base else None,
        model_fingerprint=model_fingerprint(source, recipe.model.revision),
        recipe=recipe.name,
        run=run.name,
        stage=name,
        data_fingerprint=data,
        seed=recipe.seed,
        created=now(),
        generation=recipe.own(stage).model_dump(exclude={"bootstrap"}),
        versions={package: version(package) for package in PACKAGES},
        rows=rows,
    )


def kept_predictions(path: Path, header: Header) -> Predictions | None:
    """Predictions on disk that the same evaluation made, else None."""
    if not path.exists():
        return None
    try:
        before = read_predictions(path)
    except UserError as error:
        print(f"predictions are made anew: {error}", flush=True)
        return None
    return before if before.header.model_copy(update={"created": header.created}) == header else None


def ask(
    recipe: Recipe,
    own: Evaluate,
    name: str,
    source: str,
    rows: list[dict[str, Any]],
    answers: PartialAnswers,
    stop: StopFlag,
) -> list[Prediction]:
    """Generate and score an answer for every row, batch by batch, from where an interrupted evaluation got to."""
    from pipeline.training.models import load_for_inference

    def keep(made: dict[int, Completion]) -> None:
        answers.add(made)
        if stop.is_set():
            end_stopped(f"after {len(answers.known)} of {len(rows)} rows of {name}")

    if answers.known:
        print(f"{name}: {len(answers.known)} rows are answered already", flush=True)
    model, tokenizer = load_for_inference(source, recipe.model)
    completions = complete(
        model, tokenizer, [row["prompt"] for row in rows], max_new_tokens=own.max_new_tokens,
        batch_size=own.batch_size, temperature=own.temperature, seed=recipe.seed, progress=name,
        known=answers.known, on_batch=keep,
    )  # fmt: skip
    return [judged(row, text.text, text.tokens, text.ended) for row, text in zip(rows, completions, strict=True)]


def judged(row: dict[str, Any], completion: str, tokens: int, ended: bool) -> Prediction:
    """One line of a prediction file."""
    verdict = score(completion, row)
    return Prediction(
        id=row["id"],
        row=row["row"],
        prompt=row["prompt"],
        completion=completion,
        answer=verdict.parsed,
        label=row["label"],
        correct=bool(verdict.correct),
        premise_id=row["premise"],
        hypothesis=row["hypothesis"],
        num_variables=row["num_variables"],
        template=row["template"],
        steps=[Step(text=each.text, true=each.true, reason=each.reason) for each in verdict.steps],
        true_share=verdict.true_share,
        tokens=tokens,
        ended=ended,
    )


def model_fingerprint(source: str, revision: str | None) -> str:
    """16 hex digits over a model folder's files, or over a hub id and its revision."""
    folder = Path(source)
    digest = hashlib.sha256(f"{'' if folder.is_dir() else source} {revision}".encode())
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.is_file():
            digest.update(f"{path.name} {file_hash(path)}".encode())
    return digest.hexdigest()[:16]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("logs", type=Path)
    parser.add_argument("stage")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--name")
    main(**vars(parser.parse_args()))
