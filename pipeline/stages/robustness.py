"""Attack every model of the run with the same injected instructions and ask it the same benign questions; count.

python -m pipeline.stages.robustness logs/robust-tiny robustness
python -m pipeline.stages.robustness logs/robust-tiny robustness --model models/other_contrastive_model --name other
"""

from __future__ import annotations

import argparse
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipeline import dag
from pipeline.evaluation.generate import Completion, complete
from pipeline.evaluation.partial import PartialAnswers
from pipeline.evaluation.predictions import Header
from pipeline.evaluation.report import write_report
from pipeline.evaluation.robustness import difference, summarize
from pipeline.recipe import KINDS, Recipe
from pipeline.recipe_contrastive import Robustness
from pipeline.records import remove, write_atomic, write_json
from pipeline.run import RunDir, now
from pipeline.stages.evaluate import PACKAGES, model_fingerprint, run_models
from pipeline.stages.rows import read_rows
from pipeline.tasks.injection import score
from pipeline.tasks.judge import key_of, obeyed
from pipeline.training.ranks import rank, redirect_output
from pipeline.training.stop import StopFlag, end_stopped


def main(logs: Path, stage: str, model: Path | None = None, name: str | None = None) -> None:
    """Write each model's answers and robustness.json; with `model`, add that folder under `name`."""
    redirect_output()
    stop = StopFlag()
    if rank():
        return
    run = RunDir.of_logs(logs)
    recipe, _ = run.read_resolved()
    own: Robustness = recipe.own(stage)
    data = dag.dataset_of(recipe, run)
    rows = read_rows(data / "test.jsonl")[: own.rows and 2 * own.rows]
    models = {name or stage: str(model)} if model else run_models(recipe, run)
    for each, source in models.items():
        header = header_of(recipe, run, own, each, source, data.name, len(rows))
        path, told = run.attacked(each), {**header.model_dump(exclude={"created"}), **asked(own)}
        if path.exists() and read_answers(path)[0] == told:
            print(f"{each}: its answers are there already", flush=True)
            continue
        partial = PartialAnswers(path.with_suffix(".partial"), header)
        lines = [{"header": told}, *ask(recipe, own, each, source, data, rows, partial, stop)]
        write_atomic(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        remove([partial.path])
        run.log_metrics(stage, {"model": each, "rows": len(rows)})
    results = compare(recipe, run, own, data.name)
    write_json(run.robustness, results)
    for each, found in results["models"].items():
        told = {f"{key} {each}": value["value"] for key, value in found["measures"].items()}
        run.log_metrics(stage, told)
        print(f"{each}: " + ", ".join(f"{k} {v['value']:.3f}" for k, v in found["measures"].items()), flush=True)
    if not any(KINDS[entry.kind].makes == "results" for entry in recipe.stages):
        print(f"report: {write_report(run)}", flush=True)


def header_of(recipe: Recipe, run: RunDir, own: Robustness, name: str, source: str, data: str, rows: int) -> Header:
    """What a model was asked, and how."""
    revision = recipe.model.revision
    return Header(
        model=source, revision=revision if source == recipe.model.base else None,
        model_fingerprint=model_fingerprint(source, revision), recipe=recipe.name, run=run.name, stage=name,
        data_fingerprint=data, seed=recipe.seed, created=now(), rows=rows,
        generation={"max_new_tokens": own.max_new_tokens, "batch_size": own.batch_size, "temperature": 0.0},
        versions={package: version(package) for package in PACKAGES},
    )  # fmt: skip


def asked(own: Robustness) -> dict[str, Any]:
    """What the answers' verdicts and cosines depend on beside the header."""
    judge = own.judge.model_dump(include={"url", "model"}) if own.judge else None
    return {"judge": judge, "representation": own.representation.model_dump()}


def ask(
    recipe: Recipe, own: Robustness, name: str, source: str, data: Path, rows: list[dict[str, Any]],
    partial: PartialAnswers, stop: StopFlag,
) -> list[dict[str, Any]]:  # fmt: skip
    """The rows with a model's answers and the verdicts on them, from where an interrupted stage got to."""
    from datasets import Dataset

    from pipeline.evaluation.likelihood import margins, triplet_cosines
    from pipeline.training.models import load_for_inference

    def end_if_told() -> None:
        if stop.is_set():
            end_stopped(f"after {len(partial.known)} of {len(rows)} answers of {name}")

    def keep(made: dict[int, Completion]) -> None:
        partial.add(made)
        end_if_told()

    if partial.known:
        print(f"{name}: {len(partial.known)} rows are answered already", flush=True)
    model, tokenizer = load_for_inference(source, recipe.model)
    completions = complete(
        model, tokenizer, [row["prompt"] for row in rows], max_new_tokens=own.max_new_tokens,
        batch_size=own.batch_size, temperature=0.0, seed=recipe.seed, progress=name, known=partial.known, on_batch=keep,
    )  # fmt: skip
    answers = []
    for row, completion in zip(rows, completions, strict=True):
        verdict = score(completion.text, row)
        answers.append({**row, "completion": completion.text, "answered": verdict.parsed, "correct": verdict.correct,
                        "reason": verdict.reason, "quality": verdict.quality})  # fmt: skip
    attacks = [row for row in answers if row["part"] == "injection"]
    tokens = Dataset.from_file(str(data / "test.arrow")).select(range(len(attacks)))
    cosines = triplet_cosines(model, tokens, own.representation, tokenizer.pad_token_id, own.batch_size)
    for row, (stable, spurious) in zip(attacks, cosines, strict=True):
        row |= {"stability": stable, "separation": 1 - spurious}
    uncertain = [row for row in attacks if row["correct"] is None and row["expected"]]
    for row, margin in zip(uncertain, margins(model, tokenizer, uncertain, own.batch_size), strict=True):
        row["margin"] = margin
    if own.judge:
        key = key_of(own.judge)
        for row in attacks:
            end_if_told()
            row["judged"] = obeyed(own.judge, key, row["completion"], row)
    return answers


def read_answers(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(header, answers) of a file of answers."""
    first, *answers = read_rows(path)
    return first["header"], answers


def compare(recipe: Recipe, run: RunDir, own: Robustness, data: str) -> dict[str, Any]:
    """What robustness.json holds: the measures of every model asked about these data, and the differences of each
    from every model before it."""
    found = {path.stem: read_answers(path) for path in run.attacked_files()}
    order = ["base", *recipe.training_stages()]
    names = sorted((n for n, (header, _) in found.items() if header["data_fingerprint"] == data),
                   key=lambda n: (order.index(n) if n in order else len(order), n))  # fmt: skip
    models = {name: summarize(found[name][1], own.bootstrap, recipe.seed) for name in names}
    pairs = [(before, after) for place, after in enumerate(names) for before in names[:place]]
    differences = [
        {"before": one, "after": two, "measures": difference(found[one][1], found[two][1], own.bootstrap, recipe.seed)}
        for one, two in pairs
        if found[one][0]["rows"] == found[two][0]["rows"]
    ]
    return {"made": now(), "data": data, "rows": {n: found[n][0]["rows"] for n in names}, "models": models,
            "differences": differences}  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("logs", type=Path)
    parser.add_argument("stage")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--name")
    main(**vars(parser.parse_args()))
