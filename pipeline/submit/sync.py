"""Sends what offline stages tracked to W&B: the newest attempt's folder, which holds the stage's whole history."""

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
UNREADABLE = "Failed to read"
"""What wandb says of a file whose writer was killed before its first words were on the disk."""


def offline_folders(run: RunDir, stage: str) -> list[Path]:
    """Folders of what the attempts of a stage tracked offline, the newest first."""
    return sorted((run.stage(stage) / "wandb").glob("offline-run-*"), reverse=True)


def is_sent(folder: Path) -> bool:
    """Whether wandb has sent a folder: it puts a marker beside the file."""
    return any(folder.glob("*.synced"))


def send_newest(folders: list[Path], cluster: ClusterFile) -> Path | None:
    """Send the newest folder that can be read, with wandb's own command; None when that was sent before.

    Raises StageFailed with wandb's last words when it was not sent.
    """
    told = ""
    for folder in folders:
        if is_sent(folder):
            return None
        done = subprocess.run(
            [sys.executable, "-m", "wandb", "sync", str(folder)], env=_environment(cluster, folder), check=False,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        if is_sent(folder):
            return folder
        told = done.stdout.strip()[-LAST_WORDS:]
        if UNREADABLE not in done.stdout:
            break
    raise StageFailed(
        "wandb did not send an offline run", value=told, where=str(folders[0]),
        do="`wandb login` (or export WANDB_API_KEY) where there is a network, then `sync` again",
    )  # fmt: skip


def _environment(cluster: ClusterFile, folder: Path) -> dict[str, str]:
    """The site's variables and the user's, without what kept the jobs offline; wandb's own log stays in the stage."""
    merged = {**os.environ, **variables(cluster), "WANDB_DIR": str(folder.parent.parent)}
    return {name: value for name, value in merged.items() if name != "WANDB_MODE"}
