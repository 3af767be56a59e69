"""Submission as one transaction: recorded before each sbatch, held until all is in the queue, mended when torn.

The jobs that nothing else holds back are submitted held and released last of all: whenever the launcher dies before
that, nothing runs. Each job carries `run/stage/fingerprint/place` as its comment, by which the next command finds what
a dead launcher submitted but did not live to record.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.errors import PipelineError, UserError
from pipeline.recipe import Recipe
from pipeline.run import RunDir, now
from pipeline.submit import slurm
from pipeline.submit.plan import Plan, StagePlan
from pipeline.submit.slurm import QueuedJob

CANCEL_ROUNDS = 20
"""How often a run's jobs are looked for again after they were cancelled: a requeue may bring one back."""
CANCEL_PAUSE = 0.5
"""Seconds between these looks."""


def sbatch_command(plan: Plan, each: StagePlan, after: Sequence[str], script: Path) -> list[str]:
    """The sbatch command line of one stage that starts after the jobs `after` have succeeded."""
    output = str(plan.run.slurm_output).replace("%", "%%")
    command = [
        "sbatch",
        "--parsable",
        f"--chdir={plan.home}",
        f"--comment={plan.run.comment(each.stage.name, each.stage.fingerprint)}",
        f"--output={output}/%x_%j.out",
        *each.flags,
    ]
    if after:
        command.append(f"--dependency={afterok(after)}")
    return [*command, str(script)]


def afterok(jobs: Sequence[str]) -> str:
    """Slurm's words for: after these jobs have succeeded."""
    return ",".join(f"afterok:{job}" for job in jobs)


def job_variables(plan: Plan) -> dict[str, str]:
    """What a job body must know beside its stage: the run, the copy of the code, and the hash that this must have."""
    return {"RLC_HOME": str(plan.home), "RLC_CODE": plan.home.name, "RLC_RUN_LOGS": str(plan.run.logs)}


def key_of(plan: Plan, each: StagePlan) -> str:
    """16 hex digits over all that a submission of a stage hands to Slurm but job ids: equal keys, equal jobs."""
    facts = [each.stage.fingerprint, each.script, list(each.flags), str(plan.home)]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def submit(plan: Plan, kept: Mapping[str, str]) -> dict[str, str]:
    """Submit the plan's stages but those that have a job already (`kept`, by stage); job ids of all, by stage.

    A kept job that waits for a stage with a new job gets that as its dependency and keeps its id; one that is held, as
    where the controller crashed before it had saved the release, is released. When anything fails the new jobs are
    cancelled. Raises UserError with Slurm's own words.
    """
    wanted = [each for each in plan.to_run if each.stage.name not in kept]
    stages = [each.stage.name for each in wanted] + [stage for stage in torn_stages(plan.run) if stage in kept]
    plan.run.write_transaction(state="open", stages=stages, pid=os.getpid(), host=os.uname().nodename)
    new: dict[str, str] = {}
    complete = False
    try:
        for each in wanted:
            new[each.stage.name] = _submit_stage(plan, each, {**kept, **new}, new)
        for each in plan.to_run:
            needs = each.stage.needs
            if each.stage.name in kept and any(need in stages for need in needs):
                jobs = [job for need in needs if (job := new.get(need) or kept.get(need))]
                slurm.set_dependency(kept[each.stage.name], afterok(jobs))
                plan.run.log_event("rewired", each.stage.name, job=kept[each.stage.name], after=jobs)
        mine = {*stages, *kept}
        slurm.release([job.job for stage, job in jobs_of(plan.run).items() if job.held and stage in mine])
        complete = True
    finally:
        if not complete:
            _take_back(plan.run, stages, new)
    plan.run.write_transaction(state="released")
    plan.run.log_event("released")
    return {each.stage.name: new.get(each.stage.name) or kept[each.stage.name] for each in plan.to_run}


def split_live(plan: Plan, live: Mapping[str, QueuedJob]) -> tuple[dict[str, str], dict[str, str]]:
    """(jobs to keep, jobs to cancel) by stage: live ones of stages that would run, submitted as they would be or not.

    Raises UserError when one of the latter could start or runs: it is not for us to end it.
    """
    keep: dict[str, str] = {}
    stale: dict[str, str] = {}
    for each in plan.to_run:
        job, facts = live.get(each.stage.name), plan.run.submission(each.stage.name)
        if job is None:
            continue
        if facts.get("key") == key_of(plan, each) and str(facts.get("job")) == job.job:
            keep[each.stage.name] = job.job
        elif job.held or job.reason == "DependencyNeverSatisfied" or any(n in stale for n in each.stage.needs):
            stale[each.stage.name] = job.job
        else:
            raise UserError(
                "a stage is at work with other settings or code", value=f"{each.stage.name}, job {job.job}",
                where=f"run {plan.run.name}", do="`cancel` it first, or choose another --run-name",
            )  # fmt: skip
    return keep, stale


def _submit_stage(plan: Plan, each: StagePlan, jobs: Mapping[str, str], new: Mapping[str, str]) -> str:
    """Submit one stage, held when no job of this transaction holds it back; its job id."""
    stage = each.stage
    after = [jobs[need] for need in stage.needs if need in jobs]
    command = sbatch_command(plan, each, after, plan.run.script(stage.name))
    if not any(need in new for need in stage.needs):
        command.insert(1, "--hold")
    facts = {"via": "slurm", "fingerprint": stage.fingerprint, "key": key_of(plan, each), "after": after}
    plan.run.write_submission(stage.name, job="", **facts)
    plan.run.log_event("submitting", stage.name, fingerprint=stage.fingerprint)
    job = slurm.sbatch(command, **job_variables(plan))
    plan.run.write_submission(stage.name, job=job, **facts)
    plan.run.log_event("submitted", stage.name, job=job)
    return job


def torn_stages(run: RunDir) -> list[str]:
    """The stages of a transaction that began and did not end; none when the last one ended."""
    last = run.transaction()
    return list(last["stages"]) if last.get("state") == "open" else []


def _take_back(run: RunDir, stages: Sequence[str], new: Mapping[str, str]) -> None:
    """Cancel what a failed submission left, jobs that it could not record too.

    Where the controller does not answer the transaction stays open, and the next command finds the rest.
    """
    try:
        left = {stage: job.job for stage, job in live_jobs(run).items() if stage in stages}
    except PipelineError:
        slurm.cancel(list(new.values()))
        return
    slurm.cancel(list({**new, **left}.values()))
    for stage, job in {**new, **left}.items():
        run.write_state(stage, state="cancelled", reason="another stage could not be submitted", job=job)
    run.write_transaction(state="taken back")


def jobs_of(run: RunDir) -> dict[str, QueuedJob]:
    """The newest job of each stage that Slurm knows, by their comments; ended ones too. Raises PipelineError."""
    newest: dict[str, QueuedJob] = {}
    for job in slurm.queue().values():
        stage = stage_of(run, job)
        if stage and (stage not in newest or int(job.job) > int(newest[stage].job)):
            newest[stage] = job
    return newest


def stage_of(run: RunDir, job: QueuedJob) -> str | None:
    """The stage of this run that a job works for, by its comment; where a site replaces comments, by name and folder.

    The name alone would take the jobs of a run of the same name in another place.
    """
    parts = job.comment.split("/")
    if len(parts) == 4:
        return parts[1] if run.comment(parts[1], parts[2]) == job.comment else None
    stage = job.name.removesuffix(f"_{run.name}")
    ours = stage != job.name and Path(job.folder).is_relative_to(run.logs)
    return stage if ours and run.submission(stage) else None


def adopt(run: RunDir) -> dict[str, str]:
    """Record the jobs that a dead launcher submitted but did not record; job ids by stage. The caller holds the lock.

    A transaction whose jobs are all there and released is closed. Raises PipelineError when Slurm does not answer.
    """
    stages = torn_stages(run)
    if not stages:
        return {}
    found = jobs_of(run)
    adopted = {}
    for stage in stages:
        facts = run.submission(stage)
        if facts and not facts.get("job") and stage in found and _fits(found[stage], facts):
            adopted[stage] = found[stage].job
            run.write_submission(stage, **{**facts, "job": adopted[stage]})
            run.log_event("adopted", stage, job=adopted[stage])
    held = [stage for stage in stages if stage in found and found[stage].held]
    if not held and all(run.submission(stage).get("job") for stage in stages):
        run.write_transaction(state="released")
    return adopted


def adopt_if_torn(run: RunDir) -> None:
    """`adopt`, for who only wants to see: where a launcher is at work, or Slurm does not answer, nothing is changed."""
    if torn_stages(run):
        with contextlib.suppress(PipelineError), run.locked():
            adopt(run)


def _fits(job: QueuedJob, facts: Mapping[str, object]) -> bool:
    return f"/{facts.get('fingerprint')}/" in job.comment or job.comment.count("/") != 3


def release_failed_launches(run: RunDir) -> None:
    """Let the jobs start that Slurm holds as a node could not start them: nobody else would, and others wait for them.

    A controller that crashed may start a job again on a node where it still runs, which the node refuses. Raises
    PipelineError when Slurm does not answer.
    """
    held = {stage: job.job for stage, job in jobs_of(run).items() if job.launch_failed}
    slurm.release(list(held.values()))
    for stage, job in held.items():
        run.log_event("released", stage, job=job)


def live_jobs(run: RunDir) -> dict[str, QueuedJob]:
    """The jobs of this run that are not over, by stage. Raises PipelineError when Slurm does not answer."""
    return {stage: job for stage, job in jobs_of(run).items() if not job.ended and job.state != "COMPLETING"}


def cancel_run(run: RunDir, recipe: Recipe) -> dict[str, str]:
    """Cancel all jobs of a run, held, requeued and unrecorded ones too; what was cancelled, job ids by stage.

    The caller holds the lock. The submission records say so before Slurm hears of it: a job body that is stopped can
    tell a cancellation from a preemption. Raises PipelineError when Slurm does not answer or jobs come back.
    """
    names = [entry.name for entry in recipe.stages]
    if not any(run.submission(name).get("via") in ("slurm", "submitit") for name in names) or not slurm.has_commands():
        return {}
    cancelled: dict[str, str] = {}
    for _ in range(CANCEL_ROUNDS):
        found = live_jobs(run)
        live = {name: found[name].job for name in names if name in found}
        if not live:
            break
        for stage in live:
            run.write_submission(stage, **{**run.submission(stage), "cancelled": now()})
        slurm.cancel(list(live.values()))
        cancelled |= live
        time.sleep(CANCEL_PAUSE)
    else:
        raise PipelineError(
            "jobs do not go away", value=sorted(live.values()), where=f"run {run.name}", do="scancel them by hand"
        )
    for stage, job in cancelled.items():
        run.write_state(stage, state="cancelled", reason="cancelled by its user", job=job)
    if torn_stages(run):
        run.write_transaction(state="cancelled")
    return cancelled
