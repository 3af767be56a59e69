"""A stage whose processes another launcher started: torchrun, accelerate or deepspeed, by hand.

The first process is the run's launcher and job body and starts its rank of the stage; the others wait until that has
begun an attempt, then become theirs.
"""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from pipeline.recipe import Recipe
from pipeline.records import read_json, write_json
from pipeline.training.ranks import die_with_parent, rank, world_size

MEETING = "RLC_MEETING"
"""Environment variable with the file through which the first process tells the others what to do."""
NEEDED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
OF_LAUNCHERS = ("TORCHELASTIC_", "GROUP_", "ROLE_", "CROSS_", "ACCELERATE_")
POLL_SECONDS = 0.2
DAY = 86400.0
SKEW_SECONDS = 60.0
"""How far the clocks of two nodes may differ: what is older than this process by more is of an earlier launch."""


def is_started(environment: Mapping[str, str]) -> bool:
    """Whether a launcher started this process as one of several that shall form a group."""
    return all(environment.get(name) for name in NEEDED)


def launcher_of(environment: Mapping[str, str]) -> str:
    """Which launcher that was; deepspeed's own counts as torchrun, which gives the ranks the same."""
    return "accelerate" if "ACCELERATE_MIXED_PRECISION" in environment else "torchrun"


def meeting_key(environment: Mapping[str, str], parent: int) -> str:
    """What all processes of one launch have in common, and no other launch: 16 hex digits.

    On one node that is the process that started them; over several nodes, the place where they meet.
    """
    here = environment.get("LOCAL_WORLD_SIZE") or environment.get("LOCAL_SIZE") or environment["WORLD_SIZE"]
    if int(here) == int(environment["WORLD_SIZE"]):
        started = Path(f"/proc/{parent}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
        facts = [os.uname().nodename, str(parent), started]
    else:
        names = ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "SLURM_JOB_ID")
        facts = [environment.get(name, "") for name in names]
    return hashlib.sha256(" ".join(facts).encode()).hexdigest()[:16]


def overrides(recipe: Recipe, stage: str, gpus: int) -> list[str]:
    """What this launch decides of a stage's resources: its launcher, and how many processes there are."""
    sharded = recipe.resources[stage].deepspeed is not None
    launcher = "deepspeed" if sharded else launcher_of(os.environ)
    place = f"resources.{stage}"
    return [f"{place}.launcher={launcher}", f"{place}.processes={world_size()}", f"{place}.nodes=1",
            f"{place}.gpus={min(gpus, world_size())}"]  # fmt: skip


def announce(home: Path, logs: Path, stage: str, environment: Mapping[str, str]) -> None:
    """Let the other processes begin their ranks of an attempt, with the code in `home`."""
    variables = {name: value for name, value in environment.items() if name.startswith("RLC_") and name != MEETING}
    facts = {"home": str(home), "logs": str(logs), "stage": stage}
    write_json(Path(os.environ[MEETING]), {**facts, "variables": variables})


def dismiss() -> None:
    """Let the other processes end, when there is nothing for them to do; the file stays for those yet to start."""
    write_json(Path(os.environ[MEETING]), {"logs": None})


def clear_away(path: Path) -> None:
    """Delete what earlier launches left where this one meets."""
    for old in path.parent.glob(".ranks-*.json"):
        if old == path or old.stat().st_mtime < time.time() - DAY:
            old.unlink(missing_ok=True)


def wait(path: Path, since: float) -> dict[str, Any]:
    """What the first process says once it has said it; `since` is when this process began (time.time())."""
    while True:
        said: dict[str, Any] | None = read_json(path)
        if said is not None and path.stat().st_mtime > since - SKEW_SECONDS:
            return said
        time.sleep(POLL_SECONDS)


def follow(path: Path) -> NoReturn:
    """Become a rank of the stage that the first process begins, in the environment of the job body.

    A stop asked for on the terminal is for the first process to tell to all.
    """
    die_with_parent()
    said = wait(path, time.time())
    if said["logs"] is None:
        raise SystemExit(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    environment = {**os.environ, **said["variables"], MEETING: str(path)}
    script = str(Path(said["home"]) / "slurm" / "stage.sh")
    os.execvpe("bash", ["bash", script, said["logs"], said["stage"]], environment)


def is_follower() -> bool:
    """Whether this process is a job body that shall only become its rank of the stage."""
    return MEETING in os.environ and rank() > 0


def without_group(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without what launchers set: for a stage that is one process."""
    kept = {name: value for name, value in environment.items() if not name.startswith(OF_LAUNCHERS)}
    return {name: value for name, value in kept.items() if name not in (*NEEDED, "LOCAL_WORLD_SIZE", "LOCAL_SIZE")}
