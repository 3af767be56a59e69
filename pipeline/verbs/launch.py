"""Verbs that start and end work: run, plan, retry, cancel, render."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline import show
from pipeline.cluster import load_cluster
from pipeline.errors import UserError
from pipeline.run import HOME, RunDir
from pipeline.submit import slurm
from pipeline.submit.plan import Choice, Plan, make_plan
from pipeline.submit.render import render_all
from pipeline.submit.retry import retry_run
from pipeline.submit.start import Via, active, default_via, has_gaps, resolve, resolve_for_job, start, start_over
from pipeline.submit.transaction import adopt, cancel_run
from pipeline.verbs.arguments import (
    AsJson,
    Overrides,
    RecipeName,
    RunArgument,
    RunName,
    StageArgument,
    check_stage,
    open_run,
    print_json,
    words_to_stderr,
)


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
    as_json: AsJson = False,
) -> None:
    """Run a recipe: preprocess, train, evaluate; what is done is skipped."""
    words_to_stderr(as_json)
    settings, folder, cluster = resolve(recipe, overrides or [], run_name, model)
    choice = Choice(only, first, last, replace, fresh)
    if dry_run:
        show.plan(make_plan(settings, folder, cluster, choice), as_json)
        return
    way = _via(via)
    if fresh or not folder.logs.exists():
        make_plan(settings, folder, cluster, choice)  # what is wrong is told before folders are deleted or made
    with folder.locked():
        if fresh:
            start_over(folder, settings, show.console)
        adopt(folder)
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
        before = recorded_jobs(plan)
        jobs = start(plan, way, show.console) if plan.to_run else {}
    if jobs:
        show.submitted(folder, jobs, before)
    else:
        show.results(folder)
    if as_json:
        print_json({"run": folder.name, "stages": [_launched(plan, name, jobs, before) for name in jobs or before]})


def recorded_jobs(plan: Plan) -> dict[str, str]:
    """The job that each stage had before."""
    return {each.stage.name: str(plan.run.submission(each.stage.name).get("job") or "") for each in plan.stages}


def _launched(plan: Plan, name: str, jobs: dict[str, str], before: dict[str, str]) -> dict[str, object]:
    each = next(each for each in plan.stages if each.stage.name == name)
    job = jobs.get(name, "")
    kept = bool(job) and before.get(name) == job
    return {"stage": name, "action": each.action, "reason": each.reason, "job": job, "kept": kept}


def plan(
    recipe: RecipeName,
    overrides: Overrides = None,
    run_name: RunName = None,
    replace: bool = False,
    as_json: AsJson = False,
) -> None:
    """Show what `run` would do: stages, resources, batches, the exact scripts and commands. Writes nothing."""
    settings, folder, cluster = resolve(recipe, overrides or [], run_name)
    show.plan(make_plan(settings, folder, cluster, Choice(replace=replace)), as_json)


def retry(
    name: RunArgument,
    stage: StageArgument = None,
    ending: Annotated[bool, typer.Option("--ending", hidden=True, help="the stage's job itself asks")] = False,
    as_json: AsJson = False,
) -> None:
    """Submit what failed again, as it was; stages that wait for it keep their jobs."""
    words_to_stderr(as_json)
    folder, settings = open_run(name)
    check_stage(folder, settings, stage)
    before = {entry.name: str(folder.submission(entry.name).get("job") or "") for entry in settings.stages}
    with folder.locked():
        jobs = retry_run(folder, settings, load_cluster(), stage, show.console, ending=ending)
    if jobs is None:
        show.console.print("nothing to retry: no stage of this run has failed")
    else:
        show.submitted(folder, jobs, before)
    if as_json:
        print_json({"run": folder.name, "jobs": jobs or {}})


def cancel(name: RunArgument, as_json: AsJson = False) -> None:
    """Cancel all jobs of a run, those that wait for a failed stage too."""
    words_to_stderr(as_json)
    folder, settings = open_run(name)
    with folder.locked():
        cancelled = cancel_run(folder, settings)
    told = ", ".join(f"{stage} ({job})" for stage, job in cancelled.items())
    show.console.print(f"cancelled: {told}" if told else "nothing of this run is queued or running", highlight=False)
    if as_json:
        print_json({"run": folder.name, "cancelled": cancelled})


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
