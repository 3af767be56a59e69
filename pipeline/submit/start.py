"""From words to a running DAG: resolve the recipe into a run, plan, write the run's files, hand over."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from pipeline.cluster import ClusterFile, environment_script, load_cluster, output_root, variables
from pipeline.errors import UserError
from pipeline.load import load_recipe, recipe_file
from pipeline.recipe import KINDS, Recipe
from pipeline.records import remove, write_atomic
from pipeline.run import HOME, RunDir
from pipeline.snapshot import take_snapshot
from pipeline.submit import jobs, slurm, transaction
from pipeline.submit.plan import Plan, active_stages
from pipeline.submit.status import STRANDED, UNKNOWN, StageStatus, status
from pipeline.tasks.source import is_file_source, is_folder_source
from pipeline.training.hub import check_cached, pinned

Via = Literal["local", "slurm", "submitit"]
GAPS = ("failed", "cancelled", "interrupted", "not submitted", UNKNOWN)
"""States of a stage that has no job any more, and is not done."""


def resolve(
    word: str, overrides: Sequence[str], run_name: str | None, model: str | None = None, *, pin: bool = True
) -> tuple[Recipe, RunDir, ClusterFile]:
    """The recipe with its overrides, the run it goes into and the site. Raises UserErrors. Writes nothing.

    With `pin`, what the recipe takes from the hub is of the commit that `prefetch` brought.
    """
    changes = [*overrides, *([f"model.base={model}", "model.scratch=null"] if model else [])]
    recipe = _absolute_paths(load_recipe(recipe_file(HOME, word), changes))
    cluster = load_cluster()
    run = RunDir(output_root(cluster), run_name or recipe.name)
    recipe = run.with_remedies(recipe)
    return pinned(recipe, run) if pin else recipe, run, cluster


def check_ready(plan: Plan) -> None:
    """What would make a job fail after its time in the queue: a model or data set that is not in the cache.

    Raises UserErrors that name `prefetch`.
    """
    if plan.to_run:
        data = any(KINDS[each.stage.kind].makes == "dataset" for each in plan.to_run)
        check_cached(plan.recipe, plan.run, {**os.environ, **variables(plan.cluster)}, data=data)


def _absolute_paths(recipe: Recipe) -> Recipe:
    """Relative data files and model folders are meant from where the launcher was called; jobs start elsewhere."""
    data = recipe.data
    absolute: dict[str, Any] = {"source": _absolute(data.source)}
    absolute["parts"] = {
        name: part.model_copy(update={"source": _absolute(part.source)}) for name, part in data.parts.items()
    }
    if data.teacher is not None:
        absolute["teacher"] = str(Path(data.teacher).expanduser().resolve())
    recipe = recipe.model_copy(update={"data": data.model_copy(update=absolute)})
    if recipe.model.chat_template and Path(recipe.model.chat_template).expanduser().is_file():
        file = str(Path(recipe.model.chat_template).expanduser().resolve())
        recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"chat_template": file})})
    sections = {
        name: {**section, "pairs": _absolute(section["pairs"])} if isinstance(section.get("pairs"), str) else section
        for name, section in recipe.sections.items()
    }
    recipe = recipe.model_copy(update={"sections": sections})
    if recipe.model.base and Path(recipe.model.base).expanduser().is_dir():
        folder = str(Path(recipe.model.base).expanduser().resolve())
        recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"base": folder})})
    return recipe


def _absolute(source: str | None) -> str | None:
    if source is None or not (is_file_source(source) or is_folder_source(source)):
        return source
    return str(Path(source).expanduser().resolve())


def write_files(plan: Plan, via: Via, sweep: str = "") -> None:
    """Write what the jobs read: the resolved recipe, the site's environment, the scripts. Raises UserError.

    `sweep` is the sweep that launches this run, if one does.
    """
    take_snapshot(plan.home)
    facts = {"via": via, "home": str(HOME), "code": plan.home.name, **({"sweep": sweep} if sweep else {})}
    plan.run.write_resolved(plan.recipe, facts)
    write_scripts(plan)


def write_scripts(plan: Plan) -> None:
    """Write what carries the site's facts and the resources: the environment and the scripts. Raises UserError."""
    write_atomic(plan.run.environment, environment_script(plan.cluster))
    for each in plan.to_run:
        write_atomic(plan.run.script(each.stage.name), each.script)
    plan.run.slurm_output.mkdir(parents=True, exist_ok=True)


def resolve_for_job(word: str) -> RunDir:
    """What a stage script that was submitted by hand asks for: its recipe's run, with its files written."""
    recipe, run, cluster = resolve(word, [], None)
    recipe = _settled_as_before(recipe, run)
    run.write_resolved(recipe, {"via": "sbatch", "home": str(HOME)})
    write_atomic(run.environment, environment_script(cluster))
    return run


def _settled_as_before(recipe: Recipe, run: RunDir) -> Recipe:
    """The recipe with what `auto` was settled to when this run was launched: its finished stages still count."""
    if not run.resolved.is_file():
        return recipe
    before = run.read_resolved()[0].model
    keys = [key for key in ("precision", "tf32", "attention") if getattr(recipe.model, key) == "auto"]
    change = {key: getattr(before, key) for key in keys}
    return recipe.model_copy(update={"model": recipe.model.model_copy(update=change)})


def start(plan: Plan, via: Via, console: Console) -> dict[str, list[str]]:
    """Run or submit the plan; job ids by stage (none for local). The caller holds the run's lock."""
    from pipeline.submit import submitit
    from pipeline.submit.local import run_locally

    check_ready(plan)
    if via == "slurm":
        return _submit(plan)
    write_files(plan, via)
    if via == "submitit":
        return {stage: [job] for stage, job in submitit.submit(plan).items()}
    run_locally(plan, console)
    return {}


def _submit(plan: Plan) -> dict[str, list[str]]:
    """Submit what has no job yet; jobs that wait for ever, or were held by a dead launcher, are taken over."""
    keep, stale = transaction.split_live(plan, jobs.live_jobs(plan.run))
    slurm.cancel(stale)
    write_files(plan, "slurm")
    return transaction.submit(plan, keep)


def default_via() -> Via:
    """Slurm where one answers, else this machine."""
    return "slurm" if slurm.is_there() else "local"


def has_gaps(run: RunDir, states: Sequence[StageStatus]) -> bool:
    """Whether a run at work lacks a job, of a stage that nobody submitted or that ended too early, or a release."""
    lacking = any(each.state in (*GAPS, "not started") or each.reason in ("JobHeldUser", STRANDED) for each in states)
    return lacking or bool(jobs.torn_stages(run))


def active(run: RunDir, recipe: Recipe) -> list[StageStatus] | None:
    """The states of a run of which a stage is queued or running; None when all is quiet."""
    if not run.resolved.is_file():
        return None
    states = status(run, run.read_resolved()[0])
    return states if active_stages([(each.stage, each.state) for each in states]) else None


def start_over(run: RunDir, recipe: Recipe, console: Console) -> None:
    """List this run's own folders, then delete them. Raises UserError while a stage is active."""
    if active(run, recipe):
        raise UserError("stages of this run are queued or running", value=run.name, where="--fresh", do="cancel first")
    folders = run.own_folders(recipe)
    for folder in folders:
        console.print(f"deleting {folder}", highlight=False, soft_wrap=True)
    remove([folder for folder in folders if folder != run.logs])
    remove([path for path in run.logs.glob("*") if path.name != ".lock"] if run.logs.exists() else [])
