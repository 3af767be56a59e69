"""Records on disk that survive a crash: atomic writes, manifests, markers, locks."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import NeedsMissing, UserError

SEAL = "manifest.json"
"""In a sealed folder: what it holds, to be told whole by."""


def write_atomic(path: Path, text: str) -> None:
    """Replace `path` by `text` so that a reader or a crash sees the old file or the new one, never a part.

    Raises UserError when the disk is full or the folder cannot be written; the old file then still stands.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> UserError:
    """The user error for a failed write: permission, full disk, quota."""
    hint = "make room or set output_root in configs/cluster.yaml" if error.errno in (28, 122) else "check permissions"
    return UserError("cannot write", value=error.strerror, where=str(path), do=hint)


def sync(path: Path) -> None:
    """Wait until a file's contents, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Write one JSON value atomically."""
    write_atomic(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def append_json(path: Path, value: Any) -> None:
    """Add one line of JSON to a file in a single write, so that writers on several machines do not mix their lines.

    Raises UserError when the disk is full or the folder cannot be written.
    """
    line = json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab", buffering=0) as file:
            file.write(line.encode())
    except OSError as error:
        raise cannot_write(path, error) from error


def read_json_lines(path: Path) -> list[Any]:
    """All lines of a file of JSON lines; a torn line is passed over, an absent file has none."""
    lines = []
    absent = contextlib.suppress(FileNotFoundError, NotADirectoryError)
    with absent, path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            with contextlib.suppress(json.JSONDecodeError):
                lines.append(json.loads(line))
    return lines


def read_json(path: Path) -> Any:
    """The JSON value of a record, or None when the file is absent. A torn record reads as absent."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, UnicodeDecodeError):
        return None


@dataclass(frozen=True)
class Entry:
    """One file of a manifest; `path` is relative to the folder that the run writes under."""

    path: str
    size: int
    mtime_ns: int
    sha256: str


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def manifest(root: Path, outputs: list[Path]) -> list[Entry]:
    """Entries for all files of the outputs (files or folders), sorted by path.

    Raises NeedsMissing when an output does not exist or a folder is empty: a stage must not claim what it lacks.
    """
    entries = []
    for output in outputs:
        files = sorted(p for p in output.rglob("*") if p.is_file()) if output.is_dir() else [output]
        if not files or not files[0].exists():
            raise NeedsMissing("a stage has not written its output", value=str(output), do="read its log")
        for file in files:
            stat = file.stat()
            path = os.path.relpath(file, root)
            entries.append(Entry(path, stat.st_size, stat.st_mtime_ns, file_hash(file)))
    return entries


def first_difference(root: Path, entries: list[Entry], *, thorough: bool) -> str | None:
    """What differs from a manifest, in one line, or None.

    Contents are hashed when a file's time differs from the manifest's, or always when `thorough`.
    """
    for entry in entries:
        path = root / entry.path
        if not path.is_file():
            return f"{entry.path} is missing"
        stat = path.stat()
        if stat.st_size != entry.size:
            return f"{entry.path} has {stat.st_size} bytes, not {entry.size}"
        if (thorough or stat.st_mtime_ns != entry.mtime_ns) and file_hash(path) != entry.sha256:
            return f"{entry.path} has other contents than when it was made"
    return None


def seal(folder: Path) -> None:
    """Write a folder's own manifest into it, last of all: what `whole` tells it by. Holds no times."""
    entries = [asdict(entry) | {"mtime_ns": 0} for entry in manifest(folder, [folder])]
    write_json(folder / SEAL, entries)


def whole(folder: Path) -> bool:
    """Whether a folder was sealed and every file that it had then is there with the same contents."""
    entries = read_json(folder / SEAL)
    return entries is not None and first_difference(folder, [Entry(**each) for each in entries], thorough=True) is None


@dataclass(frozen=True)
class Done:
    """A stage's done marker: written last, so that its presence means the stage is complete."""

    fingerprint: str
    finished: str
    outputs: list[Entry]


def write_done(path: Path, done: Done) -> None:
    """Write a done marker atomically."""
    write_json(path, asdict(done))


def read_done(path: Path) -> Done | None:
    """A done marker, or None when there is none or it is not whole."""
    value = read_json(path)
    if not isinstance(value, dict) or not {"fingerprint", "finished", "outputs"} <= value.keys():
        return None
    return Done(value["fingerprint"], value["finished"], [Entry(**entry) for entry in value["outputs"]])


@contextlib.contextmanager
def lock(path: Path, holder: str) -> Iterator[None]:
    """Hold a lock file for one launcher at a time. Raises UserError that names the holder when it is taken."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise cannot_write(path, error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(
                "another launcher works on this run", value=file.read().strip() or "unknown", where=str(path),
                do="wait for it, or choose another --run-name",
            ) from None  # fmt: skip
        file.seek(0)
        file.truncate()
        file.write(holder)
        file.flush()
        yield


def remove(paths: list[Path]) -> None:
    """Delete files and whole folders; absent ones are passed over."""
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
