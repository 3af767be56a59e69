"""Attack every model of the run with the same injected instructions and ask it the same benign questions; count.

python -m pipeline.stages.robustness logs/robust-tiny robustness
python -m pipeline.stages.robustness logs/robust-tiny robustness --model models/other_contrastive_model --name other
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pipeline import dag
from pipeline.evaluation.generate import complete
from pipeline.evaluation.likelihood import margins
from pipeline.evaluation.report import write_report
from pipeline.evaluation.robustness import difference, summarize
from pipeline.recipe import KINDS, Recipe
from pipeline.recipe_contrastive import Robustness
from pipeline.records import write_json
from pipeline.run import RunDir, now
from pipeline.stages.evaluate import model_fingerprint, run_models
from pipeline.stages.rows import read_rows, write_rows
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
    folder = run.robustness.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    for each, source in models.items():
        header = {
            "model": source, "fingerprint": model_fingerprint(source, recipe.model.revision), "data": data.name,
            "seed": recipe.seed, "settings": own.model_dump(exclude={"bootstrap"}), "rows": len(rows),
        }  # fmt: skip
        path = folder / f"{each}.jsonl"
        if path.exists() and read_answers(path)[0] == header:
            print(f"{each}: its answers are there already", flush=True)
            continue
        write_rows(path, [{"header": header}, *ask(recipe, own, each, source, rows, stop)])
        run.log_metrics(stage, {"model": each, "rows": len(rows)})
    results = compare(recipe, own, folder, data.name)
    write_json(run.robustness, results)
    for each, found in results["models"].items():
        told = {f"{key} {each}": value["value"] for key, value in found["measures"].items()}
        run.log_metrics(stage, told)
        print(f"{each}: " + ", ".join(f"{k} {v['value']:.3f}" for k, v in found["measures"].items()), flush=True)
    if not any(KINDS[entry.kind].makes == "results" for entry in recipe.stages):
        print(f"report: {write_report(run)}", flush=True)


def ask(
    recipe: Recipe, own: Robustness, name: str, source: str, rows: list[dict[str, Any]], stop: StopFlag
) -> list[dict[str, Any]]:
    """The rows with a model's answers and the verdicts on them. Ends this process when the stage shall stop."""
    from pipeline.training.models import load_for_inference

    def look(_: object) -> None:
        if stop.is_set():
            end_stopped(f"while {name} was asked: its answers are asked again")

    model, tokenizer = load_for_inference(source, recipe.model)
    completions = complete(
        model, tokenizer, [row["prompt"] for row in rows], max_new_tokens=own.max_new_tokens,
        batch_size=own.batch_size, temperature=0.0, seed=recipe.seed, progress=name, on_batch=look,
    )  # fmt: skip
    answers = []
    for row, completion in zip(rows, completions, strict=True):
        verdict = score(completion.text, row)
        answers.append({**row, "completion": completion.text, "answered": verdict.parsed, "correct": verdict.correct,
                        "reason": verdict.reason, "quality": verdict.quality})  # fmt: skip
    attacks = [row for row in answers if row["part"] == "injection"]
    uncertain = [row for row in attacks if row["correct"] is None and row["expected"]]
    for row, margin in zip(uncertain, margins(model, tokenizer, uncertain, own.batch_size), strict=True):
        row["margin"] = margin
    if own.judge:
        key = key_of(own.judge)
        for row in attacks:
            look(row)
            row["judged"] = obeyed(own.judge, key, row["completion"], row)
    return answers


def read_answers(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(header, answers) of a file of answers; an unfinished one has an empty header."""
    lines = read_rows(path)
    return (lines[0].get("header", {}), lines[1:]) if lines else ({}, [])


def compare(recipe: Recipe, own: Robustness, folder: Path, data: str) -> dict[str, Any]:
    """What robustness.json holds: the measures of every model asked about these data, each trained model against
    every model before it."""
    found = {path.stem: read_answers(path) for path in sorted(folder.glob("*.jsonl"))}
    order = ["base", *recipe.training_stages()]
    names = sorted((n for n, (header, _) in found.items() if header["data"] == data),
                   key=lambda n: (order.index(n) if n in order else len(order), n))  # fmt: skip
    models = {name: summarize(found[name][1], own.bootstrap, recipe.seed) for name in names}
    differences = [
        {"before": before, "after": after, **{"measures": difference(found[before][1], found[after][1], own.bootstrap,
                                                                      recipe.seed)}}
        for place, after in enumerate(names) for before in names[:place]
        if found[before][0]["rows"] == found[after][0]["rows"]
    ]  # fmt: skip
    return {"made": now(), "data": data, "rows": {n: found[n][0]["rows"] for n in names}, "models": models,
            "differences": differences}  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("logs", type=Path)
    parser.add_argument("stage")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--name")
    main(**vars(parser.parse_args()))
