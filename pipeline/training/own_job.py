"""What Slurm says of the job that we are in: why it was told to stop."""

from __future__ import annotations

import os
import re
import subprocess

TIMEOUT = 5.0
"""Seconds: Slurm kills a job some 30 s after it told it to stop."""
ENDS = ("TIMEOUT", "CANCELLED", "PREEMPTED", "NODE_FAIL", "DEADLINE", "OUT_OF_MEMORY")


def why_stopped() -> str:
    """TIMEOUT, CANCELLED, PREEMPTED and the like, in Slurm's words; empty outside of a job and where it is not known.

    The job body records it: a site without accounting forgets it minutes after the job's end.
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
    facts = dict(re.findall(r"\b(JobState|PreemptTime)=(\S+)", done.stdout))
    state = facts.get("JobState", "")
    preempted = state == "RUNNING" and facts.get("PreemptTime", "None") != "None"
    return "PREEMPTED" if preempted else state if state in ENDS else ""
