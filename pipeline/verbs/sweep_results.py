"""The last stage of a sweep: its trials side by side, those without a result named."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.cluster import ClusterFile
from pipeline.errors import NeedsMissing, PipelineError
from pipeline.evaluation.schema import ModelResult
from pipeline.recipe import KINDS
from pipeline.records import write_json
from pipeline.run import RunDir, now
from pipeline.submit.status import status
from pipeline.submit.sweep import COMPARE, read_sweep, recorded_trials, results_page, results_table
from pipeline.submit.sweep_status import trial_status
from pipeline.verbs.results import compare_runs


def compare_sweep(logs: Annotated[Path, typer.Argument(help="the sweep's folder of logs")]) -> None:
    """For the last job of a sweep: compare the trials that have a result, name those that failed."""
    compare_trials(RunDir.of_logs(logs))


def compare_trials(name: RunDir) -> None:
    """Compare the trials of a sweep and record it as a stage does. Raises NeedsMissing when none has a result."""
    facts: dict[str, Any] = {"job": os.environ.get("SLURM_JOB_ID", ""), "host": os.uname().nodename, "pid": os.getpid()}
    name.write_state(COMPARE, state="running", **facts, started=now(), ended=None, reason="", exit_code=None)
    state, reason, code = "failed", "", 1
    try:
        _compare(name)
        state, code = "done", 0
    except PipelineError as error:
        reason, code = str(error), error.exit_code
        raise
    finally:
        name.write_state(COMPARE, state=state, ended=now(), reason=reason, exit_code=code)


def _compare(name: RunDir) -> None:
    sweep = read_sweep(name, ClusterFile())
    missing = {trial.name: "never launched" for trial, _ in recorded_trials(name)}
    ready: list[RunDir] = []
    for trial in sweep.trials:
        states = status(trial.run, trial.recipe)
        results = [each for each in states if KINDS[trial.recipe.stage(each.stage).kind].makes == "results"]
        if results and all(each.state == "done" for each in results):
            ready.append(trial.run)
            del missing[trial.run.name]
        else:
            told = trial_status(states)
            missing[trial.run.name] = f"{told.state}: {told.reason}"
    if not ready:
        raise NeedsMissing("no trial has a result", value=missing, where=str(name.logs), do=f"status {name.name}")
    found = compare_runs(ready, results_page(name), missing)
    models = {side.run.name: side.comparison.models[side.model] for each in found.sets for side in each.sides}
    rows = [
        {"run": run.name, "changes": list(changes), "missing": missing.get(run.name), **_numbers(models.get(run.name))}
        for run, changes in recorded_trials(name)
    ]
    write_json(results_table(name), {"sweep": name.name, "trials": rows})
    fingerprint = str(name.submission(COMPARE).get("fingerprint"))
    name.mark_done(COMPARE, fingerprint, [results_page(name), results_table(name)])


def _numbers(model: ModelResult | None) -> dict[str, Any]:
    return {"f1": model.f1.model_dump(), "accuracy": model.accuracy} if model else {}
