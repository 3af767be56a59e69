"""Sends what offline stages tracked to W&B: each attempt's folder in order of time, all into the stage's one run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from pipeline.cluster import ClusterFile, variables
from pipeline.errors import StageFailed
from pipeline.recipe import Recipe
from pipeline.run import RunDir

LAST_WORDS = 300
"""How much of what wandb said goes into an error."""


def unsent(run: RunDir, recipe: Recipe) -> dict[str, list[Path]]:
    """Tracking files of each training stage that were not sent yet, the oldest first; stages without any left out."""
    found = {name: (run.stage(name) / "wandb").glob("offline-run-*/*.wandb") for name in recipe.training_stages()}
    left = {name: sorted(path for path in paths if not sent_marker(path).exists()) for name, paths in found.items()}
    return {name: paths for name, paths in left.items() if paths}


def sent_marker(path: Path) -> Path:
    """The file that wandb puts beside a tracking file that it has sent."""
    return path.with_name(f"{path.name}.synced")


def send(path: Path, cluster: ClusterFile) -> None:
    """Send one tracking file with wandb's own command. Raises StageFailed with its last words when it was not sent."""
    done = subprocess.run(
        [sys.executable, "-m", "wandb", "sync", str(path.parent)], env=_environment(cluster, os.environ),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    if not sent_marker(path).exists():
        raise StageFailed(
            "wandb did not send an offline run", value=done.stdout.strip()[-LAST_WORDS:], where=str(path.parent),
            do="`wandb login` (or export WANDB_API_KEY) where there is a network, then `sync` again",
        )  # fmt: skip


def _environment(cluster: ClusterFile, environment: Mapping[str, str]) -> dict[str, str]:
    """The site's variables and the user's, without what kept the jobs offline."""
    merged = {**environment, **variables(cluster)}
    return {name: value for name, value in merged.items() if name not in ("WANDB_MODE", "WANDB_DIR")}
