"""What a process of a stage needs to know of the others."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1
"""The prctl option, from linux/prctl.h."""


def rank() -> int:
    """Global rank of this process, 0 when it is alone."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of processes of this stage."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def cpus_at_hand() -> int:
    """CPU cores that this process may use: those that Slurm gave, or those that this machine lets it have."""
    there = len(os.sched_getaffinity(0))
    return min(int(os.environ.get("SLURM_CPUS_PER_TASK") or there), there)


def die_with_parent() -> None:
    """Have the kernel kill this process when the one that started it ends, however that ends (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def redirect_output() -> None:
    """Send the output of every rank but the first to its own file of the attempt's folder (RLC_ATTEMPT_DIR)."""
    folder = os.environ.get("RLC_ATTEMPT_DIR")
    if folder:
        die_with_parent()
    if rank() == 0 or not folder:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    with (Path(folder) / f"rank{rank()}.out").open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
