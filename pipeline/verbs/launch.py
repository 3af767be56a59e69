"""Verbs that start and end work: run, plan, retry, cancel, render."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline import show
from pipeline.cluster import ClusterFile, load_cluster
from pipeline.errors import UserError
from pipeline.fit.recipe_fit import applied, gpu_stages, refuse
from pipeline.fit.settle import for_card
from pipeline.recipe import Recipe
from pipeline.run import HOME, RunDir
from pipeline.submit import slurm
from pipeline.submit.jobs import adopt, cancel_run, release_failed_launches, submitted_jobs
from pipeline.submit.plan import Choice, Plan, make_plan
from pipeline.submit.render import render_all
from pipeline.submit.retry import retry_run
from pipeline.submit.start import (
    Via,
    active,
    check_ready,
    default_via,
    has_gaps,
    resolve,
    resolve_for_job,
    start,
    start_over,
)
from pipeline.submit.sweep import as_trial, make_sweep, refuse_sweep, sweep_of
from pipeline.submit.sweep_jobs import rewire_compare
from pipeline.submit.transaction import Jobs
from pipeline.verbs.arguments import (
    AsJson,
    Overrides,
    RecipeName,
    RunArgument,
    RunName,
    StageArgument,
    Swept,
    as_texts,
    check_stage,
    open_run,
    open_sweep,
    print_json,
    words_to_stderr,
)
from pipeline.verbs.fit import planned, site_card
from pipeline.verbs.sweep import cancel_sweep, retry_sweep, run_sweep, show_sweep


def run(
    recipe: RecipeName,
    overrides: Overrides = None,
    run_name: RunName = None,
    via: Annotated[str | None, typer.Option(help="local, slurm or submitit; Slurm where it answers")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show the plan, do nothing")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="delete this run's own folders first")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="make finished stages anew that changed")] = False,
    only: Annotated[str | None, typer.Option(help="this stage alone")] = None,
    first: Annotated[str | None, typer.Option("--from", help="this stage and those after it")] = None,
    last: Annotated[str | None, typer.Option("--until", help="no stage after this one")] = None,
    model: Annotated[str | None, typer.Option(help="model folder or hub id that training starts from")] = None,
    swept: Swept = None,
    as_json: AsJson = False,
) -> None:
    """Run a recipe: preprocess, train, evaluate; what is done is skipped."""
    words_to_stderr(as_json)
    choice = Choice(only, first, last, replace, fresh)
    if swept:
        sweep = make_sweep(recipe, overrides or [], swept, run_name, model)
        if dry_run:
            show_sweep(sweep, choice, as_json)
        else:
            run_sweep(sweep, choice, _via(via), as_json)
        return
    settings, folder, cluster = resolve(recipe, overrides or [], run_name, model)
    refuse_sweep(folder)
    if dry_run:
        _show_plan(settings, folder, cluster, choice, as_json)
        return
    way = _via(via)
    settings = folder.with_remedies(_fitted(settings, folder, cluster))  # what failures taught outweighs predictions
    if fresh or not folder.logs.exists():
        check_ready(make_plan(settings, folder, cluster, choice))  # told before folders are deleted or made
    with folder.locked():
        if fresh:
            start_over(folder, settings, show.console)
        adopt(folder)
        if way == "slurm":
            release_failed_launches(folder)
        busy = active(folder, settings)
        if busy and not (way == "slurm" and has_gaps(folder, busy)):
            show.console.print(f"run {folder.name} is at work already:")
            show.states(busy)
            if as_json:
                print_json({"run": folder.name, "stages": [each.as_dict() for each in busy]})
            return
        plan = make_plan(settings, folder, cluster, choice)
        show.decisions(plan)
        show.place(plan, way, chosen=via is not None)
        before = recorded_jobs(folder, settings)
        jobs = start(plan, way, show.console) if plan.to_run else {}
    if jobs:
        show.submitted(folder, jobs, before)
    else:
        show.results(folder)
    if as_json:
        print_json({"run": folder.name, "stages": [_launched(plan, name, jobs, before) for name in jobs or before]})


def recorded_jobs(run: RunDir, recipe: Recipe) -> dict[str, list[str]]:
    """The jobs that each stage had before."""
    return {entry.name: submitted_jobs(run.submission(entry.name)) for entry in recipe.stages}


def _launched(plan: Plan, name: str, jobs: Jobs, before: Jobs) -> dict[str, object]:
    each = next(each for each in plan.stages if each.stage.name == name)
    ids = jobs.get(name, [])
    kept = bool(ids) and set(ids) <= set(before[name])
    return {"stage": name, "action": each.action, "reason": each.reason, "job": " ".join(ids), "kept": kept}


def plan(
    recipe: RecipeName,
    overrides: Overrides = None,
    run_name: RunName = None,
    replace: bool = False,
    swept: Swept = None,
    as_json: AsJson = False,
) -> None:
    """Show what `run` would do: stages, resources, batches, the exact scripts and commands. Writes nothing."""
    words_to_stderr(as_json)
    if swept:
        show_sweep(make_sweep(recipe, overrides or [], swept, run_name), Choice(replace=replace), as_json)
        return
    settings, folder, cluster = resolve(recipe, overrides or [], run_name)
    _show_plan(settings, folder, cluster, Choice(replace=replace), as_json)


def _show_plan(settings: Recipe, folder: RunDir, cluster: ClusterFile, choice: Choice, as_json: bool) -> None:
    make_plan(settings, folder, cluster, choice)  # what is wrong is told before anything is predicted
    card = site_card(cluster) if gpu_stages(settings) else None
    settings = for_card(settings, card)
    fits, unknown = planned(settings, folder, card)
    show.console.stderr = False
    show.plan(make_plan(applied(settings, fits), folder, cluster, choice), as_json, fits, unknown)


def _fitted(settings: Recipe, folder: RunDir, cluster: ClusterFile) -> Recipe:
    """The recipe with what the planner chose for this site's GPU. Raises UserErrors for a stage that cannot fit it.

    Where the kind of GPU is not known nothing is predicted.
    """
    card = site_card(cluster) if gpu_stages(settings) else None
    if card is None:
        return settings
    settings = for_card(settings, card)
    fits, unknown = planned(settings, folder, card)
    for line in unknown:
        show.console.print(line, markup=False, soft_wrap=True)
    refuse(fits, f"recipe {settings.name}")
    return applied(settings, fits)


def retry(
    name: RunArgument,
    stage: StageArgument = None,
    ending: Annotated[bool, typer.Option("--ending", hidden=True, help="the stage's job itself asks")] = False,
    as_json: AsJson = False,
) -> None:
    """Submit what failed again, as it was; stages that wait for it keep their jobs."""
    words_to_stderr(as_json)
    if sweep := open_sweep(name):
        retry_sweep(sweep, None, stage, as_json)
        return
    folder, settings = open_run(name)
    check_stage(folder, settings, stage)
    sweep = sweep_of(folder)
    if sweep and not ending:
        retry_sweep(sweep, folder, stage, as_json)
        return
    before, cluster = recorded_jobs(folder, settings), load_cluster()
    with folder.locked():
        jobs = retry_run(folder, settings, as_trial(cluster) if sweep else cluster, stage, show.console, ending=ending)
    if sweep:
        rewire_compare(sweep)
    if jobs is None:
        show.console.print("nothing to retry: no stage of this run has failed")
    else:
        show.submitted(folder, jobs, before)
    if as_json:
        print_json({"run": folder.name, "jobs": as_texts(jobs or {})})


def cancel(name: RunArgument, as_json: AsJson = False) -> None:
    """Cancel all jobs of a run, those that wait for a failed stage too."""
    words_to_stderr(as_json)
    if sweep := open_sweep(name):
        cancel_sweep(sweep, as_json)
        return
    folder, settings = open_run(name)
    with folder.locked():
        cancelled = cancel_run(folder, [entry.name for entry in settings.stages])
    told = ", ".join(f"{stage} ({' '.join(ids)})" for stage, ids in cancelled.items())
    show.console.print(f"cancelled: {told}" if told else "nothing of this run is queued or running", highlight=False)
    if as_json:
        print_json({"run": folder.name, "cancelled": as_texts(cancelled)})


def render(
    check: Annotated[bool, typer.Option(help="change nothing, fail when a script is not current")] = False,
    as_json: AsJson = False,
) -> None:
    """Write the sbatch scripts of the named recipes into slurm/."""
    words_to_stderr(as_json)
    changed = render_all(HOME, write=not check)
    for path in changed:
        show.console.print(f"{'not current' if check else 'written'}: {path.relative_to(HOME)}", highlight=False)
    if as_json:
        print_json({"changed": [str(path.relative_to(HOME)) for path in changed], "written": not check})
    if check and changed:
        raise UserError(
            "scripts are not current", value=len(changed), where="slurm/", do="run: python -m pipeline render"
        )


def resolve_recipe(recipe: RecipeName) -> None:
    """For slurm/stage.sh: make the run of a recipe ready, print its folder of logs."""
    folder: RunDir = resolve_for_job(recipe)
    print(folder.logs)


def _via(word: str | None) -> Via:
    if word is None:
        return default_via()
    if word == "local" or word == "submitit":
        return "local" if word == "local" else "submitit"
    if word != "slurm":
        raise UserError("unknown way to run", value=word, where="--via", do="use local, slurm or submitit")
    if not slurm.is_there():
        raise UserError("no Slurm answers here", value="scontrol ping", where="--via slurm", do="use --via local")
    return "slurm"
