"""What a stage failed of: GPU memory, memory, its node, the network between its processes; else nobody's guess."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Kind = Literal["GPU memory", "memory", "node", "network"]

READ_BYTES = 200_000
"""How much of the end of each process's log is read."""
RANK = r"^(?:\[?rank ?\d+\]?: ?)?"
NAME = r"((?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Failed|Missing|Interrupt))"
EXCEPTION = re.compile(RANK + NAME + r"(?:: ?(.*))?$", re.M)
"""The line that ends a traceback."""
LAUNCHERS = ("ChildFailedError", "CalledProcessError", "SignalException")
"""Exceptions of torchrun, accelerate and deepspeed themselves, which say only that a process failed."""
PATTERNS: tuple[tuple[Kind, str], ...] = (
    ("GPU memory", r"OutOfMemoryError: .*(CUDA|HIP|GPU|out of memory)"),
    ("GPU memory", r"(RuntimeError|AcceleratorError): (CUDA|HIP)( error)?: out of memory"),
    ("GPU memory", r"CUBLAS_STATUS_ALLOC_FAILED"),
    ("memory", r"^(\w+\.)*MemoryError\b"),
    ("memory", r"DefaultCPUAllocator: can't allocate memory"),
    ("memory", r"OSError: \[Errno 12\]"),
    ("memory", r"DataLoader worker \(pid.*\) is killed by signal: Killed"),
    ("node", r"(RuntimeError|AcceleratorError): CUDA error: (uncorrectable ECC|unspecified launch failure|"
             r"hardware stack error|unknown error|all CUDA-capable devices are busy|an? .*hardware)"),
    ("node", r"RuntimeError: (No CUDA GPUs are available|CUDA driver initialization failed|CUDA unknown error|"
             r"Unexpected error from cudaGetDeviceCount)"),
    ("node", r"OSError: \[Errno (5|116|121)\]"),
    ("network", r"(Dist(Backend|Network|Store)|Rendezvous(Connection|Closed|Timeout|State))Error: "),
    ("network", r"RuntimeError: .*(gloo|NCCL|ncclInternalError|ncclSystemError|ncclRemoteError)"),
    ("network", r"RuntimeError: .*(Connection (closed|reset) by peer|Connection refused|collective operation timeout)"),
    ("network", r"RuntimeError: .*Timed out waiting \d+ms for (recv|send) operation"),
)  # fmt: skip
"""What the last line of a traceback looks like. An exception that none of them fits is for the user to read."""
KILLED = re.compile(r"oom[-_]kill event|Out Of Memory$|srun: error: .*Out Of Memory", re.M)
"""How Slurm says that a step's process was killed for memory."""


NODE_GONE = re.compile(r"^srun: error: .*(?:failed on node (\S+?):|Node failure on (\S+)).*$", re.M)
"""How srun says that it could not start a stage's processes on a node, or lost them with it."""


@dataclass(frozen=True)
class Failure:
    """What a stage failed of, and the words that say so. `node`: the one that they blame, else "" for one's own."""

    kind: Kind
    evidence: str
    node: str = ""


def classify(texts: list[str], *, oom_killed: bool = False) -> Failure | None:
    """What a stage failed of, from the ends of its processes' logs; None for what no change of resources mends.

    `oom_killed`: the kernel killed a process of this job for memory. An exception of a kind that is not known decides:
    where one process ends by a mistake, the others see a broken network.
    """
    found: list[Failure] = []
    gone = next((match for text in texts if (match := NODE_GONE.search(text))), None)
    if gone:
        return Failure("node", gone[0][:300], gone[1] or gone[2])
    for text in texts:
        for match in EXCEPTION.finditer(text):
            if match[1].rpartition(".")[2] in LAUNCHERS:
                continue
            told = f"{match[1]}: {match[2] or ''}"
            kind = kind_of(told)
            if kind is None:
                return None
            found.append(Failure(kind, told[:300].rstrip(": ")))
    for kind in ("GPU memory", "memory", "node", "network"):
        if kind == "memory" and (oom_killed or any(KILLED.search(text) for text in texts)):
            return Failure("memory", "a process of the stage was killed for using more memory than the job has")
        first = next((each for each in found if each.kind == kind), None)
        if first:
            return first
    return None


def kind_of(line: str) -> Kind | None:
    """The kind of the last line of a traceback."""
    return next((kind for kind, pattern in PATTERNS if re.search(pattern, line)), None)


def read_logs(folder: Path) -> list[str]:
    """The ends of the logs of an attempt, a text a process."""
    texts = []
    for path in sorted(folder.glob("rank*.out")):
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - READ_BYTES))
            texts.append(file.read().decode(errors="replace"))
    return texts


def oom_kills(proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> int:
    """How many processes the kernel killed for memory in our control group so far; 0 where it does not say."""
    for line in proc.read_text().splitlines() if proc.is_file() else []:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            counter = root / path.lstrip("/") / "memory.events"
        elif "memory" in controllers.split(","):
            counter = root / "memory" / path.lstrip("/") / "memory.oom_control"
        else:
            continue
        found = re.search(r"^oom_kill (\d+)", counter.read_text(), re.M) if counter.is_file() else None
        if found:
            return int(found[1])
    return 0
