"""Checkpoints on disk: complete when the manifest, written last, matches; torn ones are set aside, never loaded."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.errors import UserError
from pipeline.records import Entry, first_difference, manifest, read_json, remove, sync, write_json

MANIFEST = "manifest.json"
PREFIX = "checkpoint-"
"""How a checkpoint's folder begins (the Trainer's own name); the step follows."""
ASIDE = "set-aside-"
"""How the folder of a checkpoint begins that will never be loaded; the newest one is kept."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint."""

    folder: Path
    step: int
    world_size: int
    """Number of processes that wrote it."""
    fingerprint: str
    """The stage's: settings, data, code."""
    metrics_bytes: int
    """Length of metrics.jsonl when it was written."""


def seal(folder: Path, *, step: int, world_size: int, fingerprint: str, metrics_bytes: int) -> None:
    """Make a checkpoint complete: all its files on the disk first, then the manifest with their sizes and hashes.

    Raises UserError when the manifest cannot be written.
    """
    for path in sorted(folder.rglob("*")):
        sync(path)
    sync(folder)
    facts = {"step": step, "world_size": world_size, "fingerprint": fingerprint, "metrics_bytes": metrics_bytes}
    write_json(folder / MANIFEST, {**facts, "files": [asdict(each) for each in manifest(folder, [folder])]})


def read(folder: Path, *, thorough: bool) -> Checkpoint | str:
    """The checkpoint in a folder, or in one line why it is not complete; files are hashed when `thorough`."""
    value = read_json(folder / MANIFEST)
    if not isinstance(value, dict) or "files" not in value:
        return "it has no manifest"
    files = [Entry(**each) for each in value.pop("files")]
    difference = first_difference(folder, files, thorough=thorough)
    return difference or Checkpoint(folder=folder, **value)


def folders(root: Path) -> list[Path]:
    """The folders of all checkpoints, complete or not, newest first."""
    found = [path for path in root.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix(PREFIX)), reverse=True)


def newest(root: Path, fingerprint: str) -> Checkpoint | None:
    """The newest complete checkpoint of these settings and this code; looks at sizes alone."""
    found = (read(folder, thorough=False) for folder in folders(root))
    return next((each for each in found if isinstance(each, Checkpoint) and each.fingerprint == fingerprint), None)


def prepare(root: Path, fingerprint: str, world_size: int) -> Checkpoint | None:
    """The checkpoint to go on from, every byte of it checked; what stands before it is set aside.

    Raises UserError when it was written by another number of processes: each has its own random state and rows.
    """
    for folder in folders(root):
        found = read(folder, thorough=True)
        if isinstance(found, str):
            set_aside(folder, found)
        elif found.fingerprint != fingerprint:
            set_aside(folder, "it is of other settings, data or code")
        elif found.world_size != world_size:
            raise UserError(
                f"{found.world_size} processes wrote the checkpoint to go on from, now there are",
                value=world_size, where=str(folder),
                do=f"run with {found.world_size} processes again, or delete {root} to start over",
            )  # fmt: skip
        else:
            return found
    return None


def set_aside(folder: Path, reason: str) -> None:
    """Rename a checkpoint so that it is never loaded; of those set aside only this one stays."""
    remove(list(folder.parent.glob(f"{ASIDE}*")))
    target = folder.with_name(ASIDE + folder.name)
    folder.rename(target)
    print(f"{folder.name} is set aside: {reason}", flush=True)


def prune(root: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints; a folder loses its manifest first, so that no torn one passes."""
    for folder in folders(root)[keep:]:
        (folder / MANIFEST).unlink(missing_ok=True)
        remove([folder])
