"""Submit failed stages again: the same code and settings, dependents re-wired under their old job ids."""

from __future__ import annotations

import os
from dataclasses import replace

from rich.console import Console

from pipeline import dag
from pipeline.cluster import ClusterFile
from pipeline.errors import UserError
from pipeline.recipe import Recipe
from pipeline.remedies import propose
from pipeline.run import RunDir
from pipeline.snapshot import take_snapshot
from pipeline.submit import jobs, slurm, submitit, transaction
from pipeline.submit.local import run_locally
from pipeline.submit.plan import Choice, Plan, make_plan
from pipeline.submit.start import GAPS, check_ready, write_scripts
from pipeline.submit.status import STRANDED, StageStatus, status


def retry_run(
    run: RunDir, recipe: Recipe, cluster: ClusterFile, stage: str | None, console: Console, *, ending: bool = False
) -> dict[str, list[str]] | None:
    """Start the failed stages of a run again, or only `stage`; job ids of all that is queued now, None for nothing.

    It goes the way that the run went, with the copy of the code that it was launched with and the site's facts as they
    are now. `ending`: the stage's own job asks, which has failed and ends after this. The caller holds the lock.
    Raises UserError when `stage` has not failed or needs one that has.
    """
    found = retry_plan(run, recipe, cluster, stage, ending=ending)
    if found is None:
        return None
    plan, waiting = found
    via = run.read_resolved()[1]["via"]
    write_scripts(plan)
    if via == "local":
        run_locally(plan, console)
        return {}
    if via == "submitit":
        slurm.cancel([job for each in waiting.values() for job in each])
        return {stage: [job] for stage, job in submitit.submit(plan).items()}
    return transaction.submit(plan, waiting)


def retry_plan(
    run: RunDir, recipe: Recipe, cluster: ClusterFile, stage: str | None, *, ending: bool = False
) -> tuple[Plan, dict[str, list[str]]] | None:
    """(the plan of a retry, the jobs of its stages that wait and are kept), None for nothing to retry.

    The caller holds the lock. Raises UserError as `retry_run`.
    """
    jobs.adopt(run)
    states = {each.stage: each for each in status(run, recipe)}
    wanted = [stage] if ending and stage else _wanted(run, recipe, states, stage)
    if not wanted:
        return None
    if not ending:
        for name in wanted:
            _remedy(run, recipe, states[name])
    recipe = run.with_remedies(recipe)
    launch = run.read_resolved()[1]
    code = run.code(str(launch.get("code")))
    plan = make_plan(recipe, run, cluster, Choice(), code if code.is_dir() else None)
    check_ready(plan)
    run.log_event("retry", stage or "", stages=wanted)
    if not code.is_dir():
        take_snapshot(plan.home)
    if launch["via"] == "local":
        return plan, {}
    jobs.release_failed_launches(run)
    live = {name: [job.job for job in each] for name, each in jobs.live_jobs(run).items()}
    left = [job for name in wanted for job in live.get(name, []) if not ending or job != os.environ.get("SLURM_JOB_ID")]
    slurm.cancel(left)  # the segments after one that failed
    plan = _only(plan, [*wanted, *live])
    return plan, {name: each for name, each in live.items() if name in plan.names_to_run and name not in wanted}


def _wanted(run: RunDir, recipe: Recipe, states: dict[str, StageStatus], stage: str | None) -> list[str]:
    """The stages that need a new job: failed ones, and those after them that have none any more."""
    broken = [name for name, each in states.items() if each.state in GAPS or each.reason == STRANDED]
    if stage is None:
        return broken
    if stage not in broken:
        raise UserError(
            "this stage has not failed", value=f"{stage} is {states[stage].state}", where=f"run {run.name}",
            do="`status` shows which have",
        )  # fmt: skip
    stages = dag.build(recipe, run)
    before = [need for need in dag.ancestors(stages, stage) if need in broken]
    if before:
        raise UserError(f"{stage} needs {before[0]}, which failed too", where=f"run {run.name}", do=f"retry {run.name}")
    after = dag.descendants(stages, stage)
    return [name for name in broken if name == stage or name in after]


def _remedy(run: RunDir, recipe: Recipe, state: StageStatus) -> None:
    """Record what changes after a failure that took the job body too, so that only Slurm can tell of it."""
    failure = {"OUT_OF_MEMORY": "memory", "NODE_FAIL": "node"}.get(state.slurm)
    before, attempt = run.remedies(state.stage), state.attempt or 0
    if failure and not any(each.attempt == attempt for each in before):
        node = str(run.state(state.stage).get("node", ""))
        remedy = propose(recipe, state.stage, attempt, failure, f"Slurm says {state.slurm}", node, before)
        if remedy:
            run.add_remedy(remedy)


def _only(plan: Plan, names: list[str]) -> Plan:
    """The plan for these stages alone."""
    kept = tuple(each if each.stage.name in names else replace(each, action="leave") for each in plan.stages)
    return replace(plan, stages=kept)
