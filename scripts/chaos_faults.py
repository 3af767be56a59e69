"""The faults: what each does to a run at work, and how it is over."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from chaos_lab import TRAINING, Lab
from processes import belonging, send

WARNED = 45.0
"""Seconds within which Slurm, which looks every 30 s, warns of a time limit."""
GIVEN_UP = 90.0
"""Seconds within which Slurm gives a silent node up and starts its job elsewhere."""
HUNG = 150.0
"""Seconds within which Slurm ends a job that has hung since its start, with a limit of a minute."""


SPANS = {"preprocess": 3, "sft": 9, "grpo": 9, "evaluate": 8}
"""Seconds, about, for which a stage is at work here before it trains or is through."""


@dataclass
class Fault:
    """One fault: what, in which stage, when (`step` of training, else `seconds` after the stage began)."""

    kind: str
    stage: str
    step: int
    seconds: float
    rng: random.Random = field(repr=False)
    injected: str = ""
    """What was done, in a few words; empty when the run was through before its moment."""

    def is_due(self, lab: Lab, name: str) -> bool:
        """Whether its moment is there: the stage runs and is far enough."""
        run = lab.run(name)
        attempts = len(run.attempts(self.stage))
        if not attempts or run.state(self.stage).get("state") != "running":
            return False
        if self.kind == "torn checkpoint" and lab.newest_checkpoint(name, self.stage) is None:
            return False
        if self.step:
            return any(lab.last_step(name, self.stage, each + 1) >= self.step for each in range(attempts))
        begun = run.attempt_log(self.stage, 1).parent.stat().st_ctime
        return time.time() - begun >= self.seconds

    def inject(self, lab: Lab, name: str) -> None:
        """Do it, and undo what an operator would undo; `injected` stays empty when its target is gone."""
        self.injected = KINDS[self.kind](self, lab, name) or ""


def draw(rng: random.Random, kind: str, shape: str) -> Fault:
    """A fault of a kind at a random moment of a random stage where it means something."""
    stages = {"kill -9 torchrun": ["sft"], "torn checkpoint": [*TRAINING]}.get(
        kind, ["sft"] * 4 + ["grpo"] * 4 + ["evaluate"] * 2 + ["preprocess"]
    )
    stage = rng.choice(stages)
    last = TRAINING.get(stage, 0)
    step = rng.randint(1, last * 3 // 4) if last and rng.random() < 0.75 else 0
    return Fault(kind, stage, step, round(rng.uniform(0, SPANS[stage]), 2), rng)


def _job(fault: Fault, lab: Lab, name: str) -> tuple[str, str] | None:
    """(job, node) of the fault's stage while it runs."""
    found = (lab.queue(name) or {}).get(fault.stage)
    return (found[0], found[3]) if found and found[1] == "RUNNING" else None


def _alive(fault: Fault, lab: Lab, name: str, wanted: Callable[[str], bool]) -> list[int]:
    """Processes of the stage whose command line is as wanted."""
    end = f" {fault.stage} "
    return [pid for pid, words in lab.processes(name).items() if wanted(words) and words.endswith(end)]


def _is_rank(words: str) -> bool:
    return "pipeline.stages." in words and "torch.distributed.run" not in words


def preempt(fault: Fault, lab: Lab, name: str) -> str | None:
    """A job of a higher tier takes both nodes for a second."""
    if not _job(fault, lab, name):
        return None
    command = ["sbatch", "--parsable", "--partition=debug", "--nodes=2", "--exclusive", "--output=/dev/null"]
    done = lab.cluster.call(*command, "--chdir=/", "--wrap=sleep 1")
    return f"by job {done.stdout.strip()}" if done.returncode == 0 else None


def warn(fault: Fault, lab: Lab, name: str) -> str | None:
    """The time limit comes near. The stage stands still until Slurm, which looks now and then, has warned it."""
    found = _job(fault, lab, name)
    if not found:
        return None
    ranks = _alive(fault, lab, name, _is_rank)
    for pid in ranks:
        send(pid, signal.SIGSTOP)
    lab.cluster.call("scontrol", "update", f"JobId={found[0]}", "TimeLimit=2")
    output = lab.run(name).slurm_output / f"{fault.stage}_{name}_{found[0]}.out"
    before, end = output.read_text().count("SIGUSR1") if output.exists() else 0, time.monotonic() + WARNED
    while time.monotonic() < end and (not output.exists() or output.read_text().count("SIGUSR1") == before):
        time.sleep(0.1)
    for pid in ranks:
        send(pid, signal.SIGCONT)
    lab.cluster.call("scontrol", "update", f"JobId={found[0]}", "TimeLimit=10")
    return "warned" if output.exists() and output.read_text().count("SIGUSR1") > before else None


def hang(fault: Fault, lab: Lab, name: str) -> str | None:
    """All ranks stand still for ever, until Slurm ends the job at its time limit."""
    found, ranks = _job(fault, lab, name), _alive(fault, lab, name, _is_rank)
    if not found or not ranks:
        return None
    for pid in ranks:
        send(pid, signal.SIGSTOP)
    lab.cluster.call("scontrol", "update", f"JobId={found[0]}", "TimeLimit=1")
    end = time.monotonic() + HUNG
    while time.monotonic() < end and _job(fault, lab, name):
        time.sleep(0.3)
    return f"{len(ranks)} stopped until the limit"


def requeue(fault: Fault, lab: Lab, name: str) -> str | None:
    """`scontrol requeue`."""
    found = _job(fault, lab, name)
    return found[0] if found and lab.cluster.call("scontrol", "requeue", found[0]).returncode == 0 else None


def _kill_one(fault: Fault, lab: Lab, name: str, wanted: Callable[[str], bool]) -> str | None:
    pids = _alive(fault, lab, name, wanted)
    if not pids:
        return None
    send(fault.rng.choice(sorted(pids)), signal.SIGKILL)
    return f"1 of {len(pids)}"


def kill_rank(fault: Fault, lab: Lab, name: str) -> str | None:
    """kill -9 of one of the processes that train."""
    return _kill_one(fault, lab, name, _is_rank)


def kill_torchrun(fault: Fault, lab: Lab, name: str) -> str | None:
    """kill -9 of the launcher of the ranks."""
    return _kill_one(fault, lab, name, lambda words: "torch.distributed.run" in words)


def kill_body(fault: Fault, lab: Lab, name: str) -> str | None:
    """kill -9 of the batch script, which has become the job body."""
    return _kill_one(fault, lab, name, lambda words: "pipeline.training.launch" in words)


def kill_slurmd(fault: Fault, lab: Lab, name: str) -> str | None:
    """The slurmd of the job's node dies and is back in a moment."""
    found = _job(fault, lab, name)
    if not found:
        return None
    away = fault.rng.uniform(0, 8)
    lab.cluster.kill(found[1])
    time.sleep(away)
    lab.cluster.start_node(found[1], idle=False)
    return f"{found[1][-2:]} away for {away:.0f} s"


def cut_off_node(fault: Fault, lab: Lab, name: str) -> str | None:
    """A node is cut off: Slurm gives it up and starts the job elsewhere, while the first attempt lives on unseen."""
    found = _job(fault, lab, name)
    if not found:
        return None
    ranks, began = _alive(fault, lab, name, _is_rank), len(lab.run(name).attempts(fault.stage))
    for pid in ranks:  # a long stage, in short
        send(pid, signal.SIGSTOP)
    lab.cluster.kill(found[1])
    end = time.monotonic() + GIVEN_UP
    while time.monotonic() < end and len(lab.run(name).attempts(fault.stage)) == began:
        time.sleep(0.2)
    for pid in ranks:
        send(pid, signal.SIGCONT)
    time.sleep(fault.rng.uniform(0, 15))
    lab.cluster.start_node(found[1], idle=False)
    twice = len(lab.run(name).attempts(fault.stage)) > began
    return f"{found[1][-2:]}, {'two attempts at once' if twice else 'not given up'}"


def kill_node(fault: Fault, lab: Lab, name: str) -> str | None:
    """The node loses power: its slurmd, the job's step and all its processes at once. It comes back when given up."""
    found = _job(fault, lab, name)
    if not found:
        return None
    lab.cluster.kill(found[1])
    daemons = {pid for pid, _ in lab.cluster.processes.values()}
    for pid in belonging(lab.cluster.root) - daemons:
        send(pid, signal.SIGKILL)
    away = fault.rng.uniform(0, 30)
    time.sleep(away)
    lab.cluster.start_node(found[1], idle=False)
    return f"{found[1][-2:]} away for {away:.0f} s"


def restart_controller(fault: Fault, lab: Lab, name: str) -> str | None:
    """slurmctld is stopped in order or crashes, which loses its last seconds, and is back a moment later."""
    away, how = fault.rng.uniform(0, 4), fault.rng.choice([signal.SIGTERM, signal.SIGKILL])
    lab.cluster.kill("slurmctld", how)
    time.sleep(away)
    lab.cluster.start_controller()
    return f"{how.name}, away for {away:.0f} s"


def fill_disk(fault: Fault, lab: Lab, name: str) -> str | None:
    """The disk is full but for a few pages until the job has ended, or for a while; then there is room again."""
    if not _job(fault, lab, name):
        return None
    left, ballast = fault.rng.randrange(0, 40), lab.disk / "ballast"
    with ballast.open("wb") as file:
        room = os.statvfs(lab.disk)
        os.posix_fallocate(file.fileno(), 0, max(1, (room.f_bavail - left)) * room.f_frsize)
    end = time.monotonic() + 25
    while time.monotonic() < end and _job(fault, lab, name):
        time.sleep(0.3)
    ended = not _job(fault, lab, name)
    ballast.unlink()
    return f"{left} pages free" + (", the job ended" if ended else "")


def tear_checkpoint(fault: Fault, lab: Lab, name: str) -> str | None:
    """A file of the newest checkpoint loses its end or a bit, or the manifest is gone; the job body dies with it."""
    folder = lab.newest_checkpoint(name, fault.stage)
    bodies = _alive(fault, lab, name, lambda words: "pipeline.training.launch" in words)
    if folder is None or not bodies:
        return None
    send(bodies[0], signal.SIGKILL)
    time.sleep(0.5)
    folder = lab.newest_checkpoint(name, fault.stage)
    if folder is None:
        return None
    torn = fault.rng.choice(sorted(path for path in folder.iterdir() if path.is_file()))
    how = fault.rng.choice(["cut", "flip", "unlink"])
    with suppress(FileNotFoundError):
        _tear(torn, how, fault.rng)
    return f"{how} {folder.name}/{torn.name}"


def _tear(path: Path, how: str, rng: random.Random) -> None:
    if how == "unlink":
        path.unlink()
    elif how == "cut":
        os.truncate(path, rng.randrange(max(1, path.stat().st_size)))
    else:
        content = bytearray(path.read_bytes())
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)


KINDS: dict[str, Callable[[Fault, Lab, str], str | None]] = {
    "preemption": preempt,
    "time limit near": warn,
    "hung until TIMEOUT": hang,
    "scontrol requeue": requeue,
    "kill -9 rank": kill_rank,
    "kill -9 torchrun": kill_torchrun,
    "kill -9 batch script": kill_body,
    "slurmd dies": kill_slurmd,
    "node cut off": cut_off_node,
    "node dies": kill_node,
    "slurmctld restart": restart_controller,
    "full disk": fill_disk,
    "torn checkpoint": tear_checkpoint,
}


def stop_submitter(child: subprocess.Popen[str], number: signal.Signals, delay: float) -> str:
    """Signal the launcher a while after it began; what came of it."""
    with suppress(subprocess.TimeoutExpired):
        child.wait(delay)
        return ""
    child.send_signal(number)
    child.communicate(timeout=60)
    return f"{number.name} after {delay:.2f} s"
