"""Ask every model of the run the same test rows, count, compare, report.

python -m pipeline.stages.evaluate logs/tiny evaluate
python -m pipeline.stages.evaluate logs/tiny evaluate --model models/tiny_sft_model --name again
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipeline import dag
from pipeline.errors import StageFailed, UserError
from pipeline.evaluation.ask import Asker, judge_all
from pipeline.evaluation.compare import compare, fail_for_refused, write_comparison
from pipeline.evaluation.generate import Completion
from pipeline.evaluation.partial import PartialAnswers
from pipeline.evaluation.predictions import (
    Header,
    Predictions,
    check_against,
    read_all,
    read_predictions,
    write_predictions,
)
from pipeline.evaluation.report import write_report
from pipeline.evaluation.schema import BASE, Comparison
from pipeline.evaluation.sets import named_set
from pipeline.question_recipe import task_of
from pipeline.recipe import Recipe
from pipeline.recipe_evaluate import Evaluate
from pipeline.records import file_hash, read_json, remove
from pipeline.rewards.sandbox import require_sandbox
from pipeline.run import RunDir, now
from pipeline.stages.preprocess import TRAINED, prompts
from pipeline.stages.rows import read_rows
from pipeline.stages.solving import compared as solved_comparison
from pipeline.stages.solving import solve
from pipeline.training.peak import peak_memory
from pipeline.training.ranks import rank, redirect_output
from pipeline.training.stop import StopFlag, end_stopped

PACKAGES = ("torch", "transformers", "trl", "peft")


@dataclass(frozen=True)
class TestSet:
    """Rows to ask. The main set of the recipe has no name."""

    name: str
    rows: list[dict[str, Any]]
    fingerprint: str
    left_out: int = 0
    """Rows that are not asked because training had their class."""


def main(logs: Path, stage: str, model: str | None = None, name: str | None = None, count: bool = False) -> None:
    """Write prediction files, comparison.json and report.html.

    With `model` (a folder or hub id) that one is asked, under `name`; with `count` none: what is there is counted.
    """
    redirect_output()
    stop = StopFlag()
    if rank():
        return
    run = RunDir.of_logs(logs)
    recipe, _ = run.read_resolved()
    own: Evaluate = recipe.own(stage)
    models = {} if count else {name or stage: model} if model else run_models(recipe, run)
    if recipe.task != "corr2cause":
        answer_questions(recipe, run, stage, models, stop)
        return
    tests = test_sets(recipe, run, own)
    if not (model or count):
        run.cut_metrics(stage, 0)  # an interrupted evaluation logs all its models again
    broken: dict[str, str] = {}
    for each, source in models.items():
        asker = Asker(recipe, own, source)
        try:
            asked = sum(len(predict(run, asker, each, test, stop).rows) for test in tests)
        except StageFailed as error:
            broken[each] = f"{each}: {error}"
            continue
        run.log_metrics(stage, {"model": each, "rows": asked, **peak_memory()})
    comparison = compared(recipe, run, own, tests, broken)
    write_comparison(run.comparison, comparison)
    run.log_metrics(stage, {f"f1 {each}": result.f1.value for each, result in comparison.models.items()})
    print(f"report: {write_report(run)}", flush=True)
    # a model from scratch that was never trained may well say nothing
    fail_for_refused(comparison, [each for each in models if each != BASE or not recipe.model.scratch])


def answer_questions(recipe: Recipe, run: RunDir, stage: str, models: Mapping[str, str], stop: StopFlag) -> None:
    """The same for a task whose rows are questions with answers of their own."""
    require_sandbox([task_of(recipe, "test")])
    data = dag.dataset_of(recipe, run)
    test = TestSet("", read_rows(data / "test.jsonl"), data.name)
    for name, source in models.items():
        solve(recipe, run, stage, test.rows, header_of(run, Asker(recipe, recipe.own(stage), source), name, test), stop)
    comparison = solved_comparison(recipe, run, stage, test.rows)
    fail_for_refused(comparison, [each for each in models if each != BASE or not recipe.model.scratch])


def run_models(recipe: Recipe, run: RunDir) -> dict[str, str]:
    """The models of a run in order: the base model and that of each training stage."""
    from pipeline.training.models import base_source

    return {BASE: base_source(recipe, run), **{each: str(run.model(each)) for each in recipe.training_stages()}}


def test_sets(recipe: Recipe, run: RunDir, own: Evaluate) -> list[TestSet]:
    """The main test set, and those that `evaluate.sets` names, put to the models in the same words."""
    from pipeline.training.models import base_source, load_base_tokenizer

    data = dag.dataset_of(recipe, run)
    tests = [TestSet("", read_rows(data / "test.jsonl"), data.name)]
    if own.sets:
        trained = frozenset(read_json(data / TRAINED))
        tokenizer = load_base_tokenizer(base_source(recipe, run), recipe.model)
    for name in own.sets:
        made = named_set(name, own.set_rows, trained, recipe.seed, own.set_variables)
        rows = list(prompts(recipe, made.rows, tokenizer))
        if not rows:
            raise UserError("training had every class of a test set", value=name, where="evaluate.sets",
                            do="take this set out")  # fmt: skip
        left_out = f"; {made.left_out} left out: training had their classes" if made.left_out else ""
        print(f"test set {name}: {len(rows)} rows{left_out}", flush=True)
        tests.append(TestSet(name, rows, rows_fingerprint(rows), made.left_out))
    return tests


def rows_fingerprint(rows: Sequence[Mapping[str, Any]]) -> str:
    """16 hex digits over all that a model is asked and judged by."""
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()[:16]


def compared(
    recipe: Recipe, run: RunDir, own: Evaluate, tests: Sequence[TestSet], broken: Mapping[str, str]
) -> Comparison:
    """The comparison of all models with predictions, the further test sets inside of it."""
    made: dict[str, Comparison] = {}
    for test in tests:
        found, refused = read_all(run.prediction_files(test.name), test.rows, test.fingerprint)
        found = {name: each for name, each in found.items() if name not in broken}
        one = compare(found, recipe.training_stages(), recipe.task, own.bootstrap, recipe.seed, {**refused, **broken})
        left_out = {"left_out": test.left_out} if test.left_out else {}
        made[test.name] = one.model_copy(update={"data": {**one.data, **left_out}})
    return made.pop("").model_copy(update={"sets": made})


def predict(run: RunDir, asker: Asker, name: str, test: TestSet, stop: StopFlag) -> Predictions:
    """The predictions of one model on one set; those on disk are kept where model, rows and settings are the same.

    Ends this process when the stage shall stop, what was answered so far kept.
    """
    header = header_of(run, asker, name, test)
    path = run.predictions(name, test.name)
    before = kept_predictions(path, header)
    words = f"{name}, {test.name}" if test.name else name
    if before is not None:
        check_against(before, test.rows, test.fingerprint, path)
        print(f"{words}: predictions are there already", flush=True)
        return before
    answers = PartialAnswers(run.partial_predictions(name, test.name), header)
    total = len(test.rows) * asker.own.samples

    def keep(made: dict[int, Completion]) -> None:
        answers.add(made)
        if stop.is_set():
            end_stopped(f"after {len(answers.known)} of {total} rows of {words}")

    if answers.known:
        print(f"{words}: {len(answers.known)} rows are answered already", flush=True)
    completions = asker.ask(test.rows, words, answers.known, keep)
    predictions = Predictions(header, judge_all(test.rows, completions))
    write_predictions(path, predictions)
    remove([answers.path])
    return predictions


def header_of(run: RunDir, asker: Asker, name: str, test: TestSet) -> Header:
    """What stands at the top of a prediction file."""
    recipe, source = asker.recipe, asker.source
    return Header(
        model=source,
        revision=recipe.model.revision if source == recipe.model.base else None,
        model_fingerprint=model_fingerprint(source, recipe.model.revision),
        recipe=recipe.name,
        run=run.name,
        stage=name,
        data_fingerprint=test.fingerprint,
        seed=recipe.seed,
        created=now(),
        generation=asker.own.asking(recipe.task),
        versions={package: version(package) for package in PACKAGES},
        rows=len(test.rows),
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
    parser.add_argument("--model")
    parser.add_argument("--name")
    parser.add_argument("--count", action="store_true")
    main(**vars(parser.parse_args()))
