"""The jobs of a run that Slurm knows: found by their comments, adopted after a torn submission, cancelled."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError
from pipeline.run import CANCELLED, RunDir, now
from pipeline.submit import slurm
from pipeline.submit.slurm import QueuedJob

CANCEL_ROUNDS = 20
"""How often a run's jobs are looked for again after they were cancelled: a requeue may bring one back."""
CANCEL_PAUSE = 0.5
"""Seconds between these looks."""


def torn_stages(run: RunDir) -> list[str]:
    """The stages of a transaction that began and did not end; none when the last one ended."""
    last = run.transaction()
    return list(last["stages"]) if last.get("state") == "open" else []


def submitted_jobs(facts: Mapping[str, Any]) -> list[str]:
    """The jobs that a submission record names, in their order: several where a stage is cut into segments."""
    return [str(job) for job in facts.get("segments") or filter(None, [facts.get("job")])]


def complete(facts: Mapping[str, Any]) -> bool:
    """Whether a submission record names as many jobs as its stage was to get."""
    return len(submitted_jobs(facts)) == int(facts.get("of", 1))


def jobs_of(run: RunDir, queued: Mapping[str, QueuedJob] | None = None) -> dict[str, list[QueuedJob]]:
    """The jobs of each stage that are not over, oldest first, by their comments; where all are, the newest.

    `queued` is the queue as it was just seen; None asks Slurm, and raises PipelineError when it does not answer.
    """
    found: dict[str, list[QueuedJob]] = {}
    for job in sorted((slurm.queue() if queued is None else queued).values(), key=lambda job: int(job.job)):
        stage = stage_of(run, job)
        if stage:
            found.setdefault(stage, []).append(job)
    return {stage: [job for job in jobs if not job.over] or jobs[-1:] for stage, jobs in found.items()}


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
        ours = [job.job for job in found.get(stage, []) if _fits(job, facts)]
        recorded = submitted_jobs(facts)
        if facts and not complete(facts) and len({*recorded, *ours}) > len(recorded):
            adopted[stage] = ours[0]
            several = {"segments": ours} if "of" in facts else {}
            run.write_submission(stage, **{**facts, "job": ours[0], **several})
            run.log_event("adopted", stage, job=" ".join(ours))
    held = [stage for stage in stages if any(job.held for job in found.get(stage, []))]
    if not held and all(complete(run.submission(stage)) for stage in stages):
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
    held = [(stage, job.job) for stage, jobs in jobs_of(run).items() for job in jobs if job.launch_failed]
    slurm.release([job for _, job in held])
    for stage, job in held:
        run.log_event("released", stage, job=job)


def live_jobs(run: RunDir, queued: Mapping[str, QueuedJob] | None = None) -> dict[str, list[QueuedJob]]:
    """The jobs of this run that are not over, by stage; `queued` and what is raised are as for `jobs_of`."""
    return {stage: jobs for stage, jobs in jobs_of(run, queued).items() if not jobs[0].over}


def cancel_run(run: RunDir, names: Sequence[str]) -> dict[str, list[str]]:
    """Cancel all jobs of a run's stages, held, requeued and unrecorded ones too; what was cancelled, job ids by stage.

    The caller holds the lock. The submission records say so before Slurm hears of it: a job body that is stopped can
    tell a cancellation from a preemption. Raises PipelineError when Slurm does not answer or jobs come back.
    """
    if not any(run.submission(name).get("via") in ("slurm", "submitit") for name in names) or not slurm.has_commands():
        return {}
    cancelled: dict[str, list[str]] = {}
    for _ in range(CANCEL_ROUNDS):
        found = live_jobs(run)
        live = {name: [job.job for job in found[name]] for name in names if name in found}
        if not live:
            break
        for stage in live:
            run.write_submission(stage, **{**run.submission(stage), "cancelled": now()})
        slurm.cancel([job for jobs in live.values() for job in jobs])
        cancelled = {**live, **cancelled}
        time.sleep(CANCEL_PAUSE)
    else:
        raise PipelineError(
            "jobs do not go away", value=sorted(live.values()), where=f"run {run.name}", do="scancel them by hand"
        )
    for stage, jobs in cancelled.items():
        state = run.state(stage)
        told = state.get("state") == "cancelled" and state.get("job") in jobs  # by the job body, with where it stopped
        if not told and (state.get("state") != "done" or state.get("job") not in _segments(run, stage)):
            run.write_state(stage, state="cancelled", reason=CANCELLED, job=jobs[0])
    if torn_stages(run):
        run.write_transaction(state="cancelled")
    return cancelled


def _segments(run: RunDir, stage: str) -> list[str]:
    """The jobs of a stage that is cut into segments; a finished one may have some left."""
    facts = run.submission(stage)
    return submitted_jobs(facts) if "of" in facts else []
