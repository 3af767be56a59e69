"""Submission as one transaction: recorded before each sbatch, held until all is in the queue, mended when torn.

The jobs that nothing else holds back are submitted held and released last of all: whenever the launcher dies before
that, nothing runs. Each job carries `run/stage/fingerprint/place` as its comment, by which the next command finds what
a dead launcher submitted but did not live to record.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from pipeline.errors import PipelineError, UserError
from pipeline.run import RunDir
from pipeline.submit import slurm
from pipeline.submit.jobs import jobs_of, live_jobs, torn_stages
from pipeline.submit.plan import Plan, StagePlan
from pipeline.submit.slurm import QueuedJob


def sbatch_command(
    plan: Plan, each: StagePlan, after: Sequence[str], script: Path, waits: Sequence[str] = ()
) -> list[str]:
    """The sbatch command line of one stage that starts after `after` have succeeded and `waits` have ended."""
    output = str(plan.run.slurm_output).replace("%", "%%")
    command = [
        "sbatch",
        "--parsable",
        f"--chdir={plan.home}",
        f"--comment={plan.run.comment(each.stage.name, each.stage.fingerprint)}",
        f"--output={output}/%x_%j.out",
        *each.flags,
    ]
    dependencies = [word for word in (afterok(after), afterany(waits)) if word]
    if dependencies:
        command.append(f"--dependency={','.join(dependencies)}")
    return [*command, str(script)]


def afterok(jobs: Sequence[str]) -> str:
    """Slurm's words for: after these jobs have succeeded."""
    return ",".join(f"afterok:{job}" for job in jobs)


def afterany(jobs: Sequence[str]) -> str:
    """Slurm's words for: after these jobs have ended, well or not."""
    return ":".join(["afterany", *jobs]) if jobs else ""


def job_variables(plan: Plan) -> dict[str, str]:
    """What a job body must know beside its stage: the run, the copy of the code, and the hash that this must have."""
    return {"RLC_HOME": str(plan.home), "RLC_CODE": plan.home.name, "RLC_RUN_LOGS": str(plan.run.logs)}


def key_of(plan: Plan, each: StagePlan) -> str:
    """16 hex digits over all that a submission of a stage hands to Slurm but job ids: equal keys, equal jobs."""
    facts = [each.stage.fingerprint, each.script, list(each.flags), str(plan.home)]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def submit(plan: Plan, kept: Mapping[str, str]) -> dict[str, str]:
    """Submit one plan as a transaction of its own: see `Submission.add`."""
    with Submission() as submission:
        return submission.add(plan, kept)


class Submission:
    """A transaction over the plans of one run or of several: all its jobs are released together, or cancelled."""

    def __init__(self) -> None:
        self._parts: list[tuple[RunDir, list[str], dict[str, str]]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *of_error: object) -> None:
        released = False
        try:
            if kind is None:
                self._release()
                released = True
        finally:
            if not released:
                self._take_back()
        for run, _, _ in self._parts if released else []:
            run.write_transaction(state="released")
            run.log_event("released")

    def add(self, plan: Plan, kept: Mapping[str, str], waits: Sequence[str] = ()) -> dict[str, str]:
        """Submit the plan's stages but those that have a job already (`kept`, by stage); job ids of all, by stage.

        A kept job that waits for a stage with a new job gets that as its dependency and keeps its id. New jobs that
        wait for no stage of the plan start after the jobs `waits` have ended, well or not. Raises UserError with
        Slurm's own words.
        """
        run = plan.run
        wanted = [each for each in plan.to_run if each.stage.name not in kept]
        stages = [each.stage.name for each in wanted] + [stage for stage in torn_stages(run) if stage in kept]
        run.write_transaction(state="open", stages=stages, pid=os.getpid(), host=os.uname().nodename)
        new: dict[str, str] = {}
        self._parts.append((run, stages, new))
        for each in wanted:
            new[each.stage.name] = _submit_stage(plan, each, {**kept, **new}, new, waits)
        for each in plan.to_run:
            needs = each.stage.needs
            if each.stage.name in kept and any(need in stages for need in needs):
                jobs = [job for need in needs if (job := new.get(need) or kept.get(need))]
                slurm.set_dependency(kept[each.stage.name], afterok(jobs))
                run.log_event("rewired", each.stage.name, job=kept[each.stage.name], after=jobs)
        return {each.stage.name: new.get(each.stage.name) or kept[each.stage.name] for each in plan.to_run}

    def _release(self) -> None:
        queued = slurm.queue()
        found = [(stages, jobs_of(run, queued)) for run, stages, _ in self._parts]
        held = [job.job for stages, jobs in found for stage, job in jobs.items() if job.held and stage in stages]
        slurm.release(held)

    def _take_back(self) -> None:
        for part in reversed(self._parts):
            _take_back(*part)


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


def _submit_stage(
    plan: Plan, each: StagePlan, jobs: Mapping[str, str], new: Mapping[str, str], waits: Sequence[str]
) -> str:
    """Submit one stage, held when no job of its plan holds it back, and then after `waits` too; its job id."""
    stage = each.stage
    after = [jobs[need] for need in stage.needs if need in jobs]
    first = not any(need in new for need in stage.needs)
    command = sbatch_command(plan, each, after, plan.run.script(stage.name), waits if first else ())
    if first:
        command.insert(1, "--hold")
    facts = {"via": "slurm", "fingerprint": stage.fingerprint, "key": key_of(plan, each), "after": after}
    plan.run.write_submission(stage.name, job="", **facts)
    plan.run.log_event("submitting", stage.name, fingerprint=stage.fingerprint)
    job = slurm.sbatch(command, **job_variables(plan))
    plan.run.write_submission(stage.name, job=job, **facts)
    plan.run.log_event("submitted", stage.name, job=job)
    return job


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
