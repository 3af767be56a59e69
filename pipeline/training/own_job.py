"""What Slurm says of the job that we are in: why it was told to stop."""

from __future__ import annotations

import os
import re
import subprocess

TIMEOUT = 5.0
"""Seconds: Slurm kills a job some 30 s after it told it to stop."""
REASONS = {"TimeLimit": "TIMEOUT", "DeadLine": "DEADLINE"}
"""Slurm's reasons for ending a job -> the state in which the job will end."""


def why_stopped() -> str:
    """TIMEOUT, DEADLINE or PREEMPTED, in Slurm's words; empty outside of a job and where Slurm does not say.

    The job body records it: a site without accounting forgets it minutes after the job's end. A job that was cancelled,
    requeued, or preempted without a time of grace, sees nothing of that: Slurm calls it COMPLETING, for no reason.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if not job:
        return ""
    try:
        done = subprocess.run(
            ["scontrol", "show", "job", "--oneliner", job], capture_output=True, text=True, errors="replace",
            timeout=TIMEOUT, check=False,
        )  # fmt: skip
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return ""
    facts = dict(re.findall(r"\b(Reason|PreemptTime)=(\S+)", done.stdout))
    preempted = facts.get("PreemptTime", "None") != "None"
    return "PREEMPTED" if preempted else REASONS.get(facts.get("Reason", ""), "")
