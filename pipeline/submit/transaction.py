"""Submission as one transaction: recorded before each sbatch, held until all is in the queue, mended when torn.

The jobs that nothing else holds back are submitted held and released last of all: whenever the launcher dies before
that, nothing runs. Each job carries `run/stage/fingerprint/place` as its comment, by which the next command finds what
a dead launcher submitted but did not live to record.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

from pipeline.errors import PipelineError, UserError
from pipeline.run import RunDir
from pipeline.submit import slurm
from pipeline.submit.jobs import complete, jobs_of, live_jobs, submitted_jobs, torn_stages
from pipeline.submit.plan import Plan, StagePlan
from pipeline.submit.segments import afterok, waited_for
from pipeline.submit.slurm import QueuedJob
from pipeline.training.segments import segment_failed

Jobs = Mapping[str, Sequence[str]]
"""Job ids by stage: one, or one for each segment that is not over."""


def sbatch_commands(
    plan: Plan, each: StagePlan, jobs: Jobs, names: Sequence[str] = (), waits: Sequence[str] = ()
) -> Iterator[list[str]]:
    """The sbatch command lines of a stage's segments, one by one.

    The first starts after one job of each stage that it needs (`jobs`) has succeeded and `waits` have ended, the others
    after the one before has ended; its id is looked up in `names` when its turn comes.
    """
    stage = each.stage
    after = [jobs[need] for need in waited_for(stage, plan.by_name, jobs)]
    output = str(plan.run.slurm_output).replace("%", "%%")
    for number in range(plan.segments(stage.name)):
        words = (afterok(after), afterany(waits)) if number == 0 else (afterany([names[number - 1]]),)
        dependency = ",".join(word for word in words if word)
        yield [
            "sbatch",
            "--parsable",
            f"--chdir={plan.home}",
            f"--comment={plan.run.comment(stage.name, stage.fingerprint)}",
            f"--output={output}/%x_%j.out",
            *each.flags,
            *([f"--dependency={dependency}"] if dependency else []),
            str(plan.run.script(stage.name)),
        ]


def afterany(jobs: Sequence[str]) -> str:
    """Slurm's words for: after these jobs have ended, well or not."""
    return ":".join(["afterany", *jobs]) if jobs else ""


def placeholders(plan: Plan, stage: str, prefix: str = "") -> list[str]:
    """What stands for the ids of a stage's jobs in a command that is only shown."""
    count = plan.segments(stage)
    return [f"<job{f' {number + 1}' if count > 1 else ''} of {prefix}{stage}>" for number in range(count)]


def job_variables(plan: Plan) -> dict[str, str]:
    """What a job body must know beside its stage: the run, the copy of the code, and the hash that this must have."""
    return {"RLC_HOME": str(plan.home), "RLC_CODE": plan.home.name, "RLC_RUN_LOGS": str(plan.run.logs)}


def key_of(plan: Plan, each: StagePlan) -> str:
    """16 hex digits over all that a submission of a stage hands to Slurm but job ids: equal keys, equal jobs."""
    facts = [each.stage.fingerprint, each.script, list(each.flags), str(plan.home), plan.segments(each.stage.name)]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def submit(plan: Plan, kept: Jobs) -> dict[str, list[str]]:
    """Submit one plan as a transaction of its own: see `Submission.add`."""
    with Submission() as submission:
        return submission.add(plan, kept)


class Submission:
    """A transaction over the plans of one run or of several: all its jobs are released together, or cancelled."""

    def __init__(self) -> None:
        self._parts: list[tuple[RunDir, list[str], dict[str, list[str]]]] = []
        self._held: list[tuple[RunDir, set[str]]] = []

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

    def add(self, plan: Plan, kept: Jobs, waits: Sequence[str] = ()) -> dict[str, list[str]]:
        """Submit the plan's stages but those that have jobs already (`kept`); job ids of all, by stage.

        A kept job that waits for a stage with new jobs gets these as its dependency and keeps its id; one that is held,
        as where the controller crashed before it had saved the release, is released in the end. New jobs that wait for
        no stage of the plan start after the jobs `waits` have ended, well or not. Raises UserError with Slurm's own
        words.
        """
        run = plan.run
        wanted = [each for each in plan.to_run if each.stage.name not in kept]
        stages = [each.stage.name for each in wanted] + [stage for stage in torn_stages(run) if stage in kept]
        run.write_transaction(state="open", stages=stages, pid=os.getpid(), host=os.uname().nodename)
        new: dict[str, list[str]] = {}
        self._parts.append((run, stages, new))
        self._held.append((run, {*stages, *kept}))
        for each in wanted:
            _submit_stage(plan, each, kept, new, waits)
        for each in plan.to_run:
            stage = each.stage
            if stage.name in kept and any(need in stages for need in stage.needs):
                jobs = {**kept, **new}
                after = [jobs[need] for need in waited_for(stage, plan.by_name, jobs)]
                slurm.set_dependency(kept[stage.name][0], afterok(after))
                run.log_event(
                    "rewired", stage.name, job=kept[stage.name][0], after=[job for ids in after for job in ids]
                )
        return {each.stage.name: new.get(each.stage.name) or list(kept[each.stage.name]) for each in plan.to_run}

    def _release(self) -> None:
        queued = slurm.queue()
        found = [(stages, jobs_of(run, queued)) for run, stages in self._held]
        jobs = [job for stages, each in found for stage in stages for job in each.get(stage, [])]
        slurm.release([job.job for job in jobs if job.held])

    def _take_back(self) -> None:
        for part in reversed(self._parts):
            _take_back(*part)


def split_live(plan: Plan, live: Mapping[str, Sequence[QueuedJob]]) -> tuple[dict[str, list[str]], list[str]]:
    """(jobs to keep by stage, jobs to cancel): live ones of stages that would run, submitted as they would be or not.

    Raises UserError when one of the latter could start or runs: it is not for us to end it. Segments that are left of a
    stage that failed, or of a torn submission, are not kept, nor is a job that Slurm never lets start though all that
    it needs is done.
    """
    keep: dict[str, list[str]] = {}
    stale: dict[str, list[str]] = {}
    for each in plan.to_run:
        name, jobs = each.stage.name, live.get(each.stage.name, [])
        if not jobs:
            continue
        facts, ids = plan.run.submission(name), [job.job for job in jobs]
        torn = not complete(facts)
        stranded = jobs[0].reason == "DependencyNeverSatisfied" and not set(each.stage.needs) & set(plan.names_to_run)
        useless = torn or stranded or segment_failed(plan.run.state(name), submitted_jobs(facts)[:-1])
        if facts.get("key") == key_of(plan, each) and set(ids) <= set(submitted_jobs(facts)) and not useless:
            keep[name] = ids
        elif (
            useless
            or jobs[0].held
            or jobs[0].reason == "DependencyNeverSatisfied"
            or any(need in stale for need in each.stage.needs)
        ):
            stale[name] = ids
        else:
            raise UserError(
                "a stage is at work with other settings or code", value=f"{name}, job {ids[0]}",
                where=f"run {plan.run.name}", do="`cancel` it first, or choose another --run-name",
            )  # fmt: skip
    return keep, [job for jobs in stale.values() for job in jobs]


def _submit_stage(plan: Plan, each: StagePlan, kept: Jobs, new: dict[str, list[str]], waits: Sequence[str]) -> None:
    """Submit the jobs of one stage into `new`, the first held when no job of its plan holds it back.

    It then starts after `waits` too. What is submitted is recorded job by job.
    """
    stage, run = each.stage, plan.run
    first = not any(need in new for need in stage.needs)
    count = plan.segments(stage.name)
    after = [job for need in stage.needs for job in {**kept, **new}.get(need, [])]
    facts: dict[str, Any] = {
        "via": "slurm", "fingerprint": stage.fingerprint, "key": key_of(plan, each), "after": after,
        **({"of": count} if count > 1 else {}),
    }  # fmt: skip
    run.write_submission(stage.name, job="", **facts)
    ids: list[str] = []
    jobs: Jobs = {**kept, **new}
    new[stage.name] = ids
    for command in sbatch_commands(plan, each, jobs, ids, waits if first else ()):
        if first and not ids:
            command.insert(1, "--hold")
        run.log_event("submitting", stage.name, fingerprint=stage.fingerprint)
        ids.append(slurm.sbatch(command, **job_variables(plan)))
        run.write_submission(stage.name, job=ids[0], **facts, **({"segments": ids} if count > 1 else {}))
        run.log_event("submitted", stage.name, job=ids[-1])


def _take_back(run: RunDir, stages: Sequence[str], new: Jobs) -> None:
    """Cancel what a failed submission left, jobs that it could not record too.

    Where the controller does not answer the transaction stays open, and the next command finds the rest.
    """
    known = {stage: list(jobs) for stage, jobs in new.items() if jobs}
    try:
        left = {stage: [job.job for job in jobs] for stage, jobs in live_jobs(run).items() if stage in stages}
    except PipelineError:
        slurm.cancel([job for jobs in known.values() for job in jobs])
        return
    slurm.cancel([job for jobs in {**known, **left}.values() for job in jobs])
    for stage, jobs in {**known, **left}.items():
        run.write_state(stage, state="cancelled", reason="another stage could not be submitted", job=jobs[0])
    run.write_transaction(state="taken back")
