"""The state of each stage, from our own records and one look at the queue; works without sacct."""

from __future__ import annotations

import datetime
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pipeline import dag
from pipeline.recipe import Recipe
from pipeline.run import RunDir
from pipeline.submit.jobs import submitted_jobs, torn_stages
from pipeline.submit.look import Look, Queue, look
from pipeline.submit.slurm import ENDED, QueuedJob

UNKNOWN = "ended, cause unknown"
BROKEN = ("failed", "cancelled", "interrupted", "not submitted", "blocked", UNKNOWN)
NOT_METRICS = ("time", "step", "epoch", "gpu_memory", "processes", "micro", "checkpointing",
               "peak_allocated", "peak_reserved")  # fmt: skip
STRANDED = (
    "Slurm takes a stage that is done for failed, as it ended after its time was up; `retry` submits this one again"
)
"""Why a job can wait for ever though all that its stage needs is done."""
CAUSES = {
    "TIMEOUT": "it reached its time limit",
    "OUT_OF_MEMORY": "it used more memory than it asked for",
    "PREEMPTED": "another job took its place",
    "NODE_FAIL": "its node failed",
    "BOOT_FAIL": "its node could not be started",
    "DEADLINE": "it could not end before its deadline",
    "CANCELLED": "cancelled with scancel",
}
"""What ended a job, where Slurm knows it better than the job itself."""


@dataclass(frozen=True)
class StageStatus:
    """One line of the status table. `slurm` is Slurm's own word for the job's state, where it is known."""

    stage: str
    state: str
    reason: str
    job: str
    elapsed: str
    attempt: int | None
    metric: str
    slurm: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        return asdict(self)


def status(run: RunDir, recipe: Recipe) -> list[StageStatus]:
    """The state of every stage of a run."""
    return look_at(run, recipe)[0]


def look_at(run: RunDir, recipe: Recipe, queued: Queue | None = None) -> tuple[list[StageStatus], Look]:
    """The state of every stage of a run, and the look at the queue (`queued`, if taken) that says how old it is."""
    submitted = {entry.name: run.submission(entry.name) for entry in recipe.stages}
    seen = look(run, {job: name for name, facts in submitted.items() for job in submitted_jobs(facts)}, queued)
    stages, torn = dag.build(recipe, run), torn_stages(run)
    found: dict[str, StageStatus] = {}
    for name, facts in submitted.items():
        state, reason = _state(run, name, facts, seen)
        if reason == "JobHeldUser" and name in torn:
            reason = "held: its submission was interrupted; `run` goes on with it, `cancel` takes it out"
        broken = [found[need] for need in dag.ancestors(stages, name) if found[need].state in BROKEN]
        if state == "blocked" and all(found[need].state == "done" for need in dag.ancestors(stages, name)):
            reason = STRANDED
        if state in ("waiting", "queued", "blocked") and broken:
            state, reason = "blocked", f"{broken[0].stage} {broken[0].state}: {broken[0].reason}".rstrip(": ")
        found[name] = _status(run, name, state, reason, facts, seen)
    return list(found.values()), seen


def status_alone(run: RunDir, name: str, queued: Queue | None = None) -> StageStatus:
    """The state of a stage that belongs to no recipe."""
    facts = run.submission(name)
    seen = look(run, dict.fromkeys(submitted_jobs(facts), name), queued)
    return _status(run, name, *_state(run, name, facts, seen), facts, seen)


def _state(run: RunDir, name: str, submitted: Mapping[str, Any], seen: Look) -> tuple[str, str]:
    record = run.state(name) if _belongs(run.state(name), submitted) else {}
    job = current_job(submitted, record, seen)
    known = seen.jobs.get(job)
    recorded_end = record.get("state") in ("done", "failed", "interrupted", "cancelled")
    ran = str(record.get("job") or "")
    over = ran in submitted_jobs(submitted) and ran != job and record["state"] in ("done", "failed")  # by a segment
    if known and not known.ended and seen.fresh and not over and not (known.state == "COMPLETING" and recorded_end):
        state, reason = _queued_state(known)
        return state, "; ".join(filter(None, (reason, _segment(submitted, job))))
    if recorded_end and record["state"] != "done":
        return _refined(record, seen.jobs.get(ran) if over else known)
    done = run.done(name)
    if done and (done.fingerprint == submitted.get("fingerprint") or done.finished >= submitted.get("submitted", "")):
        return "done", ""
    if not submitted:
        return "not started", ""
    if submitted.get("via") == "slurm" and not job:
        return "not submitted", "the launcher ended before it was; `run` goes on"
    if known and not known.ended:
        state, reason = _queued_state(known)
        return state, f"{reason}; as of {duration(seen.age)} ago".removeprefix("; ")
    if known:
        return _ended_state(known)
    if record.get("state") == "running":
        return _running_state(record, job, seen)
    lost = "the job left no record, Slurm does not know it; `retry` submits it again"
    return (UNKNOWN, lost) if job else ("not started", "")


def current_job(submitted: Mapping[str, Any], record: Mapping[str, Any], seen: Look) -> str:
    """The job of a stage that tells its state; of segments the first that is not over, else the last that ran."""
    jobs = submitted_jobs(submitted)
    left = [job for job in jobs if (known := seen.jobs.get(job)) and not known.over]
    ran = [job for job in jobs if job == record.get("job")]
    return next(iter([*left, *ran, *reversed(jobs)]), "")


def _segment(submitted: Mapping[str, Any], job: str) -> str:
    jobs = submitted_jobs(submitted)
    return f"segment {jobs.index(job) + 1} of {len(jobs)}" if len(jobs) > 1 else ""


def _belongs(record: Mapping[str, Any], submitted: Mapping[str, Any]) -> bool:
    """Whether the job body's record is of the last submission and not of one before it."""
    jobs = submitted_jobs(submitted)
    if str(record.get("job") or "") in jobs:
        return True
    return (
        bool(record)
        and str(record.get("updated", "")) >= str(submitted.get("submitted", ""))
        and not (jobs and record.get("job"))
    )


def _queued_state(job: QueuedJob) -> tuple[str, str]:
    if job.state in ("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED"):
        return "running", ""
    if job.reason == "DependencyNeverSatisfied":
        return "blocked", "a stage that it needs failed"
    return ("waiting", "for the stages that it needs") if job.reason == "Dependency" else ("queued", job.reason)


def _refined(record: Mapping[str, Any], known: QueuedJob | None) -> tuple[str, str]:
    """What the job body recorded of its end; Slurm's word goes before it where a signal is all that the body saw."""
    told = known.state if known and known.ended else str(record.get("slurm") or "")
    reason = str(record.get("reason") or "")
    if told not in CAUSES or record["state"] == "cancelled":
        unsaid = record["state"] == "interrupted" and record.get("job") and "SIGTERM" in reason
        return str(record["state"]), reason + (": cancelled or preempted, Slurm did not say which" if unsaid else "")
    return ENDED[told], f"{told}: {CAUSES[told]}" + (f" ({reason})" if reason else "")


def _ended_state(job: QueuedJob) -> tuple[str, str]:
    if job.state == "COMPLETED":
        return "failed", "COMPLETED, but its done marker is not there"
    unrecorded = "its job body ended without a record: killed, never begun, or no room on the disk"
    return ENDED[job.state], f"{job.state}: {CAUSES.get(job.state, unrecorded)}"


def _running_state(record: Mapping[str, Any], job: str, seen: Look) -> tuple[str, str]:
    """The job body says that it runs: believe it unless it is known to be gone."""
    here = record.get("host") == os.uname().nodename
    if not job and here and not _is_alive(int(record["pid"])):
        return "interrupted", "its process is gone"
    if job and seen.fresh:
        return UNKNOWN, "it ran, and is not in the queue any more"
    return "running", "" if seen.fresh else f"as its job recorded; {seen.error}"


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _status(run: RunDir, name: str, state: str, reason: str, submitted: Mapping[str, Any], seen: Look) -> StageStatus:
    record = run.state(name)
    job = current_job(submitted, record, seen)
    known = seen.jobs.get(job)
    elapsed = known.elapsed if known and seen.fresh and state == "running" else _elapsed(record, state)
    shown = "" if state in ("not started", "not submitted", "waiting", "queued", "blocked") else last_metric(run, name)
    told = known.state if known else str(record.get("slurm") or "")
    return StageStatus(name, state, reason, job, elapsed, record.get("attempt"), shown, told)


def _elapsed(record: Mapping[str, Any], state: str) -> str:
    if not record.get("started") or state in ("not started", "not submitted", "waiting", "queued"):
        return ""
    begun = datetime.datetime.fromisoformat(str(record["started"]))
    ended = record.get("ended")
    until = datetime.datetime.fromisoformat(str(ended)) if ended else datetime.datetime.now(datetime.UTC)
    return str(until - begun).partition(".")[0]


def duration(seconds: int) -> str:
    """A time span in the unit that says most: 40 s, 12 min, 5 h, 3 days."""
    for unit, name in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * unit:
            return f"{seconds // unit} {name}"
    return f"{seconds} s"


def last_metric(run: RunDir, stage: str) -> str:
    """The newest metrics of a stage in a few words: step and up to three values."""
    lines = run.read_metrics(stage)
    if not lines:
        return ""
    newest = lines[-1]
    preferred = ("loss", "reward", "dev_f1", "dev_accuracy", "kl", "f1", "accuracy")
    keys = [k for k in preferred if k in newest] or [k for k in newest if k not in NOT_METRICS]
    words = [f"step {newest['step']}"] if "step" in newest else []
    words += [f"{k} {newest[k]:.4g}" for k in keys[:3] if isinstance(newest[k], int | float)]
    return "  ".join(words)
