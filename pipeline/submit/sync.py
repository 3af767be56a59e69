"""Sends what offline stages tracked to W&B: the last attempt's folder, which holds the stage's whole history."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from pipeline.cluster import ClusterFile, variables
from pipeline.errors import StageFailed
from pipeline.run import RunDir

LAST_WORDS = 300
"""How much of what wandb said goes into an error."""


def newest_folder(run: RunDir, stage: str) -> Path | None:
    """The folder of what the last attempt of a stage tracked offline; None when nothing was."""
    return max((run.stage(stage) / "wandb").glob("offline-run-*"), default=None)


def is_sent(folder: Path) -> bool:
    """Whether wandb has sent a folder: it puts a marker beside the file."""
    return any(folder.glob("*.synced"))


def send(folder: Path, cluster: ClusterFile) -> None:
    """Send a folder with wandb's own command. Raises StageFailed with wandb's last words when it was not sent."""
    done = subprocess.run(
        [sys.executable, "-m", "wandb", "sync", str(folder)], env=_environment(cluster, folder), check=False,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    if not is_sent(folder):
        raise StageFailed(
            "wandb did not send an offline run", value=done.stdout.strip()[-LAST_WORDS:], where=str(folder),
            do="`wandb login` (or export WANDB_API_KEY) where there is a network, then `sync` again",
        )  # fmt: skip


def _environment(cluster: ClusterFile, folder: Path) -> dict[str, str]:
    """The site's variables and the user's, without what kept the jobs offline; wandb's own log stays in the stage."""
    merged = {**os.environ, **variables(cluster), "WANDB_DIR": str(folder.parent.parent)}
    return {name: value for name, value in merged.items() if name != "WANDB_MODE"}
