"""A look at Slurm's queue that is remembered: the ends of jobs outlive Slurm's memory, a silent Slurm hides nothing."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from pipeline.errors import PipelineError, UserError
from pipeline.run import RunDir, now
from pipeline.submit import slurm
from pipeline.submit.jobs import stage_of
from pipeline.submit.slurm import ENDED, QueuedJob


@dataclass(frozen=True)
class Look:
    """What is known of jobs, by id. `seen` is when Slurm said so; `error` why it could not be asked now, or empty."""

    jobs: dict[str, QueuedJob]
    seen: str = ""
    error: str = ""

    @property
    def fresh(self) -> bool:
        """Whether Slurm answered now."""
        return not self.error

    @property
    def age(self) -> int:
        """Seconds since Slurm said so."""
        seen = datetime.datetime.fromisoformat(self.seen) if self.seen else datetime.datetime.now(datetime.UTC)
        return max(0, int((datetime.datetime.now(datetime.UTC) - seen).total_seconds()))


Queue = Mapping[str, QueuedJob] | PipelineError
"""The queue as it was just seen, or why it could not be."""


def ask() -> Queue:
    """Look at the queue once, for several runs."""
    try:
        return slurm.queue()
    except PipelineError as error:
        return error


def look(run: RunDir, jobs: Mapping[str, str], queued: Queue | None = None) -> Look:
    """The state of these jobs of a run (their stages by id): from the queue, else accounting, else as last seen.

    `queued` is the queue where somebody has just asked for it.
    """
    if not jobs:
        return Look({})
    before = run.queue_seen()
    known = {job: QueuedJob(**facts) for job, facts in before.get("jobs", {}).items() if job in jobs}
    queued = ask() if queued is None else queued
    if isinstance(queued, PipelineError):
        return Look(known, str(before.get("seen", "")), str(queued))
    found = {job: known[job] for job in jobs if job in known and known[job].ended}
    found |= {job: queued[job] for job in jobs if job in queued and not _of_another(run, queued[job])}
    told = slurm.accounted_states([job for job in jobs if job not in found])
    found |= {job: QueuedJob(job, state, "", "", "", "", "") for job, state in told.items() if state in ENDED}
    seen = Look(found, now())
    news = {job: facts for job, facts in found.items() if facts.ended and not (job in known and known[job].ended)}
    with contextlib.suppress(UserError):  # a full disk or another user's run: the answer is the same
        run.write_queue_seen({"seen": seen.seen, "jobs": {job: asdict(facts) for job, facts in found.items()}})
        for job, facts in news.items():
            run.log_event("ended", jobs[job], job=job, slurm=facts.state)
    return seen


def _of_another(run: RunDir, job: QueuedJob) -> bool:
    """Whether a job says that it is of another run: a controller that crashed gives the ids of lost jobs away again."""
    return job.comment.count("/") == 3 and stage_of(run, job) is None
