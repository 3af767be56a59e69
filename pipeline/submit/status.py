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
from pipeline.submit import slurm
from pipeline.submit.slurm import ENDED, QueuedJob, has_ended

UNKNOWN = "ended, cause unknown"
BROKEN = ("failed", "cancelled", "interrupted", "blocked", UNKNOWN)
NOT_METRICS = ("time", "step", "epoch")


@dataclass(frozen=True)
class StageStatus:
    """One line of the status table."""

    stage: str
    state: str
    reason: str
    job: str
    elapsed: str
    attempt: int | None
    metric: str

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        return asdict(self)


def status(run: RunDir, recipe: Recipe) -> list[StageStatus]:
    """The state of every stage of a run."""
    names = [entry.name for entry in recipe.stages]
    submitted = {name: run.submission(name) for name in names}
    jobs = [str(facts["job"]) for facts in submitted.values() if facts.get("job")]
    queued = slurm.queue(jobs) if jobs and slurm.is_there() else {}
    stages = dag.build(recipe, run)
    found: dict[str, StageStatus] = {}
    for name in names:
        state, reason = _state(run, name, submitted[name], queued)
        broken = [found[need] for need in dag.ancestors(stages, name) if found[need].state in BROKEN]
        if state in ("waiting", "queued", "blocked") and broken:
            state, reason = "blocked", f"{broken[0].stage} {broken[0].state}: {broken[0].reason}".rstrip(": ")
        found[name] = _status(run, name, state, reason, submitted[name], queued)
    return list(found.values())


def _state(run: RunDir, name: str, submitted: Mapping[str, Any], queued: Mapping[str, QueuedJob]) -> tuple[str, str]:
    record = run.state(name)
    job = str(submitted.get("job") or "")
    if job in queued and not has_ended(queued[job]):
        return _queued_state(queued[job])
    newer = record if _belongs(record, submitted) else {}
    if newer.get("state") == "running":
        return _running_state(newer, job)
    if newer.get("state") in ("failed", "interrupted", "cancelled"):
        return str(newer["state"]), str(newer.get("reason") or "")
    if run.done(name):
        return "done", ""
    if not job:
        return "not started", ""
    told = queued[job].state if job in queued else slurm.accounted_state(job)
    if told is None:
        return UNKNOWN, "the job left no record"
    return ENDED.get(told, UNKNOWN), told


def _belongs(record: Mapping[str, Any], submitted: Mapping[str, Any]) -> bool:
    """Whether the job body's record is of the last submission and not of one before it."""
    job = str(submitted.get("job") or "")
    same_job = str(record.get("job") or "") == job
    return bool(record) and (same_job or str(record.get("updated", "")) >= str(submitted.get("submitted", "")))


def _queued_state(job: QueuedJob) -> tuple[str, str]:
    if job.state in ("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED"):
        return "running", ""
    if job.reason == "DependencyNeverSatisfied":
        return "blocked", "a stage that it needs failed"
    return ("waiting", "for the stages that it needs") if job.reason == "Dependency" else ("queued", job.reason)


def _running_state(record: Mapping[str, Any], job: str) -> tuple[str, str]:
    """The job body says that it runs: believe it unless it is known to be gone."""
    here = record.get("host") == os.uname().nodename
    if here and not job and not _is_alive(int(record["pid"])):
        return "interrupted", "its process is gone"
    if job and slurm.is_there():
        told = slurm.accounted_state(job)
        return (
            (ENDED.get(told, UNKNOWN), told) if told and told != "RUNNING" else (UNKNOWN, "not in the queue any more")
        )
    return "running", ""


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _status(
    run: RunDir, name: str, state: str, reason: str, submitted: Mapping[str, Any], queued: Mapping[str, QueuedJob]
) -> StageStatus:
    record = run.state(name)
    job = str(submitted.get("job") or "")
    elapsed = queued[job].elapsed if job in queued and state == "running" else _elapsed(record, state)
    shown = "" if state in ("not started", "waiting", "queued", "blocked") else last_metric(run, name)
    return StageStatus(name, state, reason, job, elapsed, record.get("attempt"), shown)


def _elapsed(record: Mapping[str, Any], state: str) -> str:
    if not record.get("started") or state in ("not started", "waiting", "queued"):
        return ""
    begun = datetime.datetime.fromisoformat(str(record["started"]))
    ended = record.get("ended")
    until = datetime.datetime.fromisoformat(str(ended)) if ended else datetime.datetime.now(datetime.UTC)
    return str(until - begun).partition(".")[0]


def last_metric(run: RunDir, stage: str) -> str:
    """The newest numbers of a stage in a few words: step and up to three values."""
    lines = run.read_metrics(stage)
    if not lines:
        return ""
    newest = lines[-1]
    preferred = ("loss", "reward", "dev_f1", "kl", "f1")
    keys = [k for k in preferred if k in newest] or [k for k in newest if k not in NOT_METRICS]
    words = [f"step {newest['step']}"] if "step" in newest else []
    words += [f"{k} {newest[k]:.4g}" for k in keys[:3] if isinstance(newest[k], int | float)]
    return "  ".join(words)
