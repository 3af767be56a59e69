"""The jobs of a run that Slurm knows: found by their comments, adopted after a torn submission, cancelled."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.errors import PipelineError
from pipeline.run import RunDir, now
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


def jobs_of(run: RunDir, queued: Mapping[str, QueuedJob] | None = None) -> dict[str, QueuedJob]:
    """The newest job of each stage that Slurm knows, by their comments; ended ones too.

    `queued` is the queue as it was just seen; None asks Slurm, and raises PipelineError when it does not answer.
    """
    newest: dict[str, QueuedJob] = {}
    for job in (slurm.queue() if queued is None else queued).values():
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


def live_jobs(run: RunDir, queued: Mapping[str, QueuedJob] | None = None) -> dict[str, QueuedJob]:
    """The jobs of this run that are not over, by stage; `queued` and what is raised are as for `jobs_of`."""
    return {stage: job for stage, job in jobs_of(run, queued).items() if not job.ended and job.state != "COMPLETING"}


def cancel_run(run: RunDir, names: Sequence[str]) -> dict[str, str]:
    """Cancel all jobs of a run's stages, held, requeued and unrecorded ones too; what was cancelled, job ids by stage.

    The caller holds the lock. The submission records say so before Slurm hears of it: a job body that is stopped can
    tell a cancellation from a preemption. Raises PipelineError when Slurm does not answer or jobs come back.
    """
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
