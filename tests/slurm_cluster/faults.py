"""Faults that befall a run on the test Slurm. Each is real, and says what it did, or None when nothing was there."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cluster import Cluster
from processes import wait_until

from pipeline.run import RunDir

TRAINED = ("sft", "grpo")


@dataclass
class Target:
    """A run at work, and the Slurm that it is on."""

    run: RunDir
    cluster: Cluster
    rng: random.Random

    def jobs(self, state: str = "RUNNING") -> list[str]:
        """Ids of the run's jobs in a state."""
        lines = self.cluster.call("squeue", "-h", "-t", state, "-o", "%i %j").stdout.splitlines()
        return [job for job, _, name in (line.partition(" ") for line in lines) if name.endswith(f"_{self.run.name}")]

    def processes(self, *words: str) -> list[int]:
        """Ids of processes of this run whose command line has all these words."""
        return [pid for pid, line in command_lines() if str(self.run.logs) in line and all(w in line for w in words)]


def command_lines() -> list[tuple[int, str]]:
    """(process id, command line) of all processes here."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:  # it ended meanwhile
                continue
            found.append((int(entry.name), line))
    return found


def _kill(pids: list[int]) -> bool:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    return bool(pids)


def requeue(target: Target) -> str | None:
    """`scontrol requeue` of a running job."""
    jobs = target.jobs()
    return (
        f"scontrol requeue {jobs[0]}"
        if jobs and not target.cluster.call("scontrol", "requeue", jobs[0]).returncode
        else None
    )


def terminate(target: Target) -> str | None:
    """TERM to all processes of a running job."""
    jobs = target.jobs()
    if not jobs:
        return None
    target.cluster.call("scancel", "--signal=TERM", "--full", jobs[0])
    return f"TERM to job {jobs[0]}"


def time_limit(target: Target) -> str | None:
    """A running job gets a limit that it has nearly reached; put back once Slurm has seen it."""
    jobs = target.jobs()
    if not jobs:
        return None
    target.cluster.call("scontrol", "update", f"JobId={jobs[0]}", "TimeLimit=1")
    time.sleep(target.rng.uniform(30, 75))
    target.cluster.call("scontrol", "update", f"JobId={jobs[0]}", "TimeLimit=30")
    return f"time limit of job {jobs[0]}"


def preempt(target: Target) -> str | None:
    """A job of higher priority takes both nodes for a moment."""
    if not target.jobs():
        return None
    words = ("--nodes=2", "--exclusive", "--output=/dev/null", "--partition=debug", "--wrap=sleep 1")
    job = target.cluster.call("sbatch", "--parsable", *words).stdout.strip()
    wait_until("the urgent job has run", lambda: job not in target.cluster.call("squeue", "-h", "-o", "%i").stdout, 90)
    return "preemption"


def kill_rank(target: Target) -> str | None:
    """kill -9 of a stage's own process."""
    return "kill -9 of a rank" if _kill(target.processes("pipeline.stages.")[:1]) else None


def kill_launcher(target: Target) -> str | None:
    """kill -9 of torchrun."""
    return "kill -9 of torchrun" if _kill(target.processes("torch.distributed.run")[:1]) else None


def kill_body(target: Target) -> str | None:
    """kill -9 of the job body, which is the batch script."""
    return "kill -9 of the batch script" if _kill(target.processes("pipeline.training.launch")) else None


def node_down(target: Target) -> str | None:
    """kill -9 of the slurmd of a node at work; the node is declared dead, later started again."""
    busy = [name for name in target.cluster.names if target.cluster.call("squeue", "-h", "-w", name, "-t", "R").stdout]
    if not busy:
        return None
    name = busy[0]
    pid, _ = target.cluster.processes[name]
    _kill([pid])
    _kill(target.processes("pipeline.stages."))  # a dead node has no processes
    _kill(target.processes("pipeline.training.launch"))
    target.cluster.call("scontrol", "update", f"NodeName={name}", "State=DOWN", "Reason=chaos")
    time.sleep(target.rng.uniform(1, 4))
    target.cluster.call("scontrol", "update", f"NodeName={name}", "State=RESUME")
    target.cluster.start_node(name)
    return f"node {name} down"


def controller_restart(target: Target) -> str | None:
    """slurmctld is stopped as an administrator stops it, its state saved, and started again after a while.

    Killed with -9 it forgets the last seconds, jobs among them, and nothing brings those back (docs/reliability.md).
    """
    pid, _ = target.cluster.processes["slurmctld"]
    os.kill(pid, signal.SIGTERM)
    wait_until("slurmctld has ended", lambda: not Path(f"/proc/{pid}/cmdline").exists() or _is_zombie(pid))
    time.sleep(target.rng.uniform(0.5, 4))
    target.cluster.start_controller()
    return "slurmctld restarted"


def _is_zombie(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def full_disk(target: Target) -> str | None:
    """The checkpoints of a training stage come to lie on a full disk for a while."""
    stage = target.rng.choice(TRAINED)
    folder = target.run.checkpoints(stage)
    if target.run.done(stage) or folder.exists() or target.processes("pipeline.stages.", f" {stage}"):
        return None
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], check=True)
    try:
        wait_until(f"{stage} ends", lambda: target.run.state(stage).get("ended") is not None, 120)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
    return f"full disk under the checkpoints of {stage}"


def tear_checkpoint(target: Target) -> str | None:
    """The newest checkpoint loses the end of a file, then the stage's process is killed."""
    for stage in TRAINED:
        found = sorted(target.run.checkpoints(stage).glob("checkpoint-*/model.safetensors"), key=os.path.getmtime)
        if found:
            try:
                os.truncate(found[-1], found[-1].stat().st_size // 2)
            except FileNotFoundError:  # it was pruned meanwhile
                return None
            _kill(target.processes("pipeline.stages."))
            return f"torn {found[-1].parent.name} of {stage}, kill -9"
    return None


FAULTS: dict[str, Callable[[Target], str | None]] = {
    "requeue": requeue,
    "terminate": terminate,
    "time limit": time_limit,
    "preemption": preempt,
    "rank": kill_rank,
    "torchrun": kill_launcher,
    "batch script": kill_body,
    "node": node_down,
    "slurmctld": controller_restart,
    "full disk": full_disk,
    "torn checkpoint": tear_checkpoint,
}
"""Every fault but those of the submitter, which the rounds themselves inject."""
