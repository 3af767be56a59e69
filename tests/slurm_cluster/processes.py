"""Processes of a test cluster: waiting, telling one process from a later one of its number, finding what jobs left."""

from __future__ import annotations

import os
import signal
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

MARK = "SLURM_TEST_ROOT"
"""Stands in the environment of every daemon of a cluster."""


def start_time(pid: int) -> str | None:
    """When a process began, in clock ticks; None when it is gone or dead. Tells it from a later one of its number."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]


def wait_until(what: str, test: Callable[[], bool], seconds: float = 30) -> None:
    """Poll until the test holds. Raises TimeoutError that names what was waited for."""
    end = time.monotonic() + seconds
    while not test():
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {seconds} s")
        time.sleep(0.05)


def send(pid: int, number: signal.Signals) -> None:
    """Send a signal; a process that ended meanwhile is no error."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def end(pid: int, started: str, seconds: float = 10) -> None:
    """End exactly this process: TERM, then KILL when it has not ended in time. A stopped one is woken first."""
    if start_time(pid) != started:
        return
    send(pid, signal.SIGTERM)
    send(pid, signal.SIGCONT)
    try:
        wait_until(f"process {pid} ends", lambda: start_time(pid) != started, seconds)
    except TimeoutError:
        send(pid, signal.SIGKILL)
        wait_until(f"process {pid} ends", lambda: start_time(pid) != started, seconds)


def belonging(root: Path) -> set[int]:
    """Processes of the cluster in a folder: daemons, job steps, jobs, and everything below them.

    Slurm gives every process of a job SLURM_CONF and SLURM_JOB_ID, and every daemon inherits the mark. slurmstepd
    overwrites the head of its environment; it is known by the log that it holds open.
    """
    found = {pid for pid in living() if _is_ours(pid, root)}
    children = defaultdict(list)
    for pid, parent in living().items():
        children[parent].append(pid)
    new = list(found)
    while new:
        new = [child for pid in new for child in children[pid] if child not in found]
        found.update(new)
    return found


def members(group: Path) -> set[int]:
    """Processes of a cgroup."""
    try:
        return {int(pid) for pid in (group / "cgroup.procs").read_text().split()}
    except OSError:  # slurmstepd removed it meanwhile
        return set()


def living() -> dict[int, int]:
    """The parent of every living process of this machine."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it ended meanwhile
                continue
            if fields[0] != "Z":
                parents[int(entry.name)] = int(fields[1])
    return parents


def _is_ours(pid: int, root: Path) -> bool:
    process = Path(f"/proc/{pid}")
    try:
        environment = (process / "environ").read_bytes().split(b"\0")
        if f"{MARK}={root}".encode() in environment:
            return True
        if f"SLURM_CONF={root}/slurm.conf".encode() in environment:
            return any(variable.startswith(b"SLURM_JOB_ID=") for variable in environment)
        if not (process / "exe").readlink().name.startswith("slurmstepd"):
            return False
        return any(link.readlink().is_relative_to(root / "log") for link in (process / "fd").iterdir())
    except OSError:  # it ended meanwhile, or is a kernel thread
        return False
