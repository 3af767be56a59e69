"""Putting a stopped job back into Slurm's queue, and noticing that a job comes back without getting further."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from pipeline.dag import Stage
from pipeline.errors import StageFailed
from pipeline.recipe import KINDS
from pipeline.run import RunDir
from pipeline.training import checkpoints

TIMEOUT = 30.0
"""Seconds that scontrol may take: the job has little time left."""


def requeue(job: str) -> str:
    """Put this job back into the queue under its own number, so that its dependents wait on; "" or why not."""
    told, shown = _scontrol("show", "job", "-o", job)
    fields = dict(word.partition("=")[::2] for word in shown.split())
    if told:
        return told
    if fields.get("JobState") != "RUNNING":
        return f"Slurm ends it itself ({fields.get('JobState')})"
    if fields.get("Requeue") != "1":
        return "requeueing is not allowed for this job"
    return _scontrol("requeue", job)[0]


def _scontrol(*words: str) -> tuple[str, str]:
    """(what went wrong or "", output) of a call of scontrol."""
    try:
        done = subprocess.run(["scontrol", *words], capture_output=True, text=True, timeout=TIMEOUT, check=False)
    except FileNotFoundError:
        return "there is no scontrol here", ""
    except subprocess.TimeoutExpired:
        return f"Slurm does not answer within {TIMEOUT:.0f} s", ""
    return (" ".join(done.stderr.split()) if done.returncode else ""), done.stdout


def progress(run: RunDir, stage: Stage) -> int:
    """How far a stage has come: the step of its newest checkpoint, or the bytes of the predictions on disk."""
    newest = checkpoints.newest(run.checkpoints(stage.name), stage.fingerprint)
    asks = KINDS[stage.kind].makes in ("results", "robustness")
    return newest.step if newest else run.predictions_bytes() if asks else 0


def refuse_stalling(stage: str, attempts: Sequence[dict[str, Any]], limit: int) -> None:
    """Look at the attempts of a stage, the one that begins last.

    Raises StageFailed when the same job began `limit` times before without having come any further since.
    """
    latest = attempts[-1]
    alike = takewhile(lambda each: each == latest, reversed(attempts[:-1]))
    count = sum(1 for _ in alike)
    if latest["job"] and count >= limit:
        raise StageFailed(
            f"{count} requeues of job {latest['job']} brought {stage} no further than", value=latest["progress"],
            where="stalled_requeues", do="save more often (checkpoint.every_steps), ask for more time, or see the logs",
        )  # fmt: skip
