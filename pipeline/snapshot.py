"""A copy of the code that a run is submitted with: its jobs run that, whatever happens to the project meanwhile."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import UserError
from pipeline.records import cannot_write, remove
from pipeline.run import HOME

PARTS = ("pipeline", "configs", "slurm/stage.sh", "docs/leaderboard.yaml")
"""What a job needs of the project (the report shows published results); the rest stays behind."""
LEFT_OUT = ("configs/cluster.yaml",)
"""Facts of the site: jobs get them as flags and as environment.sh."""


def code_files(home: Path) -> Iterator[Path]:
    """The files of a project that a job needs, relative to the project's folder, sorted."""
    for part in PARTS:
        found = [home / part] if (home / part).is_file() else (home / part).rglob("*")
        for path in sorted(found):
            relative = path.relative_to(home)
            if path.is_file() and "__pycache__" not in relative.parts and relative.as_posix() not in LEFT_OUT:
                yield relative


def code_hash(home: Path = HOME) -> str:
    """16 hex digits over the names and contents of the code."""
    digest = hashlib.sha256()
    for relative in code_files(home):
        text = (home / relative).read_bytes()
        digest.update(f"{relative.as_posix()}\0{len(text)}\0".encode() + text)
    return digest.hexdigest()[:16]


def take_snapshot(folder: Path, home: Path = HOME) -> None:
    """Copy the code into `folder`, unless it stands there already, whole. Raises UserError when it cannot be written.

    The environment of Python is linked, not copied.
    """
    if folder.is_dir() and code_hash(folder) == code_hash(home):
        return
    part = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        remove([part, folder])
        for relative in code_files(home):
            (part / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(home / relative, part / relative)
            (part / relative).chmod(0o444 | (part / relative).stat().st_mode & 0o111)
        if (home / ".venv").exists():
            (part / ".venv").symlink_to(home / ".venv")
        part.replace(folder)
    except OSError as error:
        raise cannot_write(folder, error) from error


def check_snapshot() -> None:
    """In a job: that the code at work is the code that was submitted. Raises UserError when it is another."""
    submitted = os.environ.get("RLC_CODE")
    if submitted is None:  # a script that was submitted by hand runs the project itself
        return
    home = Path(os.environ["RLC_HOME"]).resolve()
    if home != HOME:
        raise UserError(
            "another copy of the code is at work than was submitted", value=str(HOME), where=str(home),
            do="take the project out of PYTHONPATH, or uninstall it from the environment",
        )  # fmt: skip
    if code_hash() != submitted:
        raise UserError(
            "the code is not what was submitted", value=code_hash(), where=str(home),
            do="leave the copies under logs/ alone; `run` submits the code anew",
        )  # fmt: skip
