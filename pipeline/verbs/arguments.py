"""What several verbs take, and the run that they name."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from pipeline import show
from pipeline.cluster import load_cluster, output_root
from pipeline.errors import UserError
from pipeline.recipe import Recipe
from pipeline.run import RunDir, known_runs
from pipeline.settings import nearest
from pipeline.submit.sweep import is_sweep, trial_names

RecipeName = Annotated[str, typer.Argument(help="a recipe: its name in configs/, or the path of a YAML file")]
Overrides = Annotated[list[str] | None, typer.Argument(help="section.key=value ...")]
RunName = Annotated[str | None, typer.Option("--run-name", help="name of the run; the recipe's by default")]
RunArgument = Annotated[str, typer.Argument(help="name of a run")]
StageArgument = Annotated[str | None, typer.Argument(help="a stage of the run")]
Swept = Annotated[
    list[str] | None,
    typer.Option("--sweep", help="section.key=VALUE,VALUE,...: a run for each value; may be repeated"),
]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]


def open_run(name: str) -> tuple[RunDir, Recipe]:
    """A run that was launched, by name. Raises UserError with the nearest name when there is none."""
    root = output_root(load_cluster())
    folder = RunDir(root, name)
    if is_sweep(folder):
        trials = ", ".join(trial_names(folder))
        raise UserError("a sweep, not a run", value=name, where=str(folder.logs), do=f"name one of its runs: {trials}")
    if not folder.resolved.is_file():
        runs = known_runs(root)
        hint = nearest(name, runs) if runs else f"start one: run {name}"
        raise UserError("no such run", value=name, where=str(folder.logs), do=hint)
    return folder, folder.read_resolved()[0]


def open_sweep(name: str) -> RunDir | None:
    """The place of a sweep's records, by its name; None when that is not the name of a sweep."""
    folder = RunDir(output_root(load_cluster()), name)
    return folder if is_sweep(folder) else None


def check_stage(run: RunDir, recipe: Recipe, stage: str | None) -> None:
    """Raises UserError with the nearest name when a run has no such stage."""
    names = [entry.name for entry in recipe.stages]
    if stage is not None and stage not in names:
        raise UserError("unknown stage", value=stage, where=f"run {run.name}", do=nearest(stage, names))


def check_model(run: RunDir, recipe: Recipe, stage: str) -> None:
    """Raises UserError with the nearest name when no stage of this name makes a model."""
    names = [*recipe.training_stages(), *(["base"] if recipe.model.scratch else [])]
    if stage not in names:
        raise UserError(
            "no stage of this name makes a model", value=stage, where=f"run {run.name}", do=nearest(stage, names)
        )


def print_json(value: dict[str, Any]) -> None:
    """Print one JSON value, and nothing else, on standard output."""
    print(json.dumps(value, indent=1, ensure_ascii=False))


def as_texts(jobs: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Job ids by stage for --json: those of a stage in segments with blanks between them."""
    return {stage: " ".join(ids) for stage, ids in jobs.items()}


def words_to_stderr(as_json: bool) -> None:
    """Where JSON is asked for, what is said on the way goes to standard error."""
    show.console.stderr = as_json
