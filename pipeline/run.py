"""RunDir: every record of a run."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import NeedsMissing
from pipeline.load import build_recipe, dump_recipe
from pipeline.recipe import Recipe
from pipeline.records import (
    Done,
    append_json,
    cannot_write,
    lock,
    manifest,
    read_done,
    read_json,
    read_json_lines,
    write_atomic,
    write_done,
    write_json,
)
from pipeline.remedies import Remedy, apply
from pipeline.run_paths import RunPaths
from pipeline.settings import Tree, dump_yaml, parse_yaml, read_text

HOME = Path(__file__).resolve().parent.parent
"""The project's folder: configs/, slurm/, scripts/."""
CANCELLED = "cancelled by its user"
"""The reason of a stage whose jobs `cancel` ended; where it stopped may follow."""


def now() -> str:
    """This moment, UTC, to the second, ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


class RunDir(RunPaths):
    """One run: its paths, and the records that lie there."""

    @classmethod
    def of_logs(cls, logs: Path) -> RunDir:
        """The run whose folder of logs is given, as a job gets it."""
        logs = logs.resolve()
        return cls(logs.parent.parent, logs.name)

    def write_resolved(self, recipe: Recipe, extra: Tree) -> None:
        """Write what the jobs read: the recipe's name, `extra` (facts of the launch) and all settings."""
        header = "# Written by the launcher; the jobs of this run read this file and nothing else.\n"
        write_atomic(self.resolved, header + dump_yaml({"recipe": recipe.name, "launch": extra, **dump_recipe(recipe)}))

    def read_resolved(self) -> tuple[Recipe, Tree]:
        """The recipe of this run, remedies included, and the facts of its launch.

        Raises NeedsMissing when it was never launched.
        """
        if not self.resolved.is_file():
            raise NeedsMissing("no such run", value=self.name, where=str(self.resolved), do="start it with `run`")
        tree = parse_yaml(read_text(self.resolved), str(self.resolved))
        name, extra = tree.pop("recipe"), tree.pop("launch")
        return self.with_remedies(build_recipe(name, tree, str(self.resolved))), extra

    def remedies(self, stage: str) -> list[Remedy]:
        """What failures changed of a stage by themselves, oldest first."""
        return [Remedy(**line) for line in read_json_lines(self.stage(stage) / "remedies.jsonl")]

    def add_remedy(self, remedy: Remedy) -> None:
        """Record a change, and tell it in the timeline."""
        append_json(self.stage(remedy.stage) / "remedies.jsonl", remedy.as_dict())
        self.log_event("remedy", remedy.stage, reason=remedy.evidence, change=remedy.told())

    def with_remedies(self, recipe: Recipe) -> Recipe:
        """A recipe for this run with what failures changed of it."""
        return apply(recipe, [each for entry in recipe.stages for each in self.remedies(entry.name)])

    def done(self, stage: str) -> Done | None:
        """A stage's done marker, if there is one."""
        return read_done(self.stage(stage) / "done.json")

    def mark_done(self, stage: str, fingerprint: str, outputs: list[Path]) -> None:
        """Write the done marker: last of all, with the manifest of the outputs."""
        done = Done(fingerprint, now(), manifest(self.root, outputs))
        write_done(self.stage(stage) / "done.json", done)

    def unmark(self, stage: str) -> None:
        """Take a done marker away before a stage's outputs are made anew."""
        (self.stage(stage) / "done.json").unlink(missing_ok=True)

    def state(self, stage: str) -> dict[str, Any]:
        """What the job body last recorded: state, attempt, started, ended, exit_code, host, pid, job; else {}."""
        return read_json(self.stage(stage) / "state.json") or {}

    def write_state(self, stage: str, **facts: Any) -> None:
        """Record the state of a stage; facts not given stay as they are. A new state goes into the timeline too."""
        write_json(self.stage(stage) / "state.json", {**self.state(stage), **facts, "updated": now()})
        if "state" in facts:
            keys = ("attempt", "job", "host", "exit_code", "slurm", "reason", "peak_memory_gb")
            told = {key: facts.get(key) for key in keys}
            self.log_event(str(facts["state"]), stage, **told)

    def submission(self, stage: str) -> dict[str, Any]:
        """What the launcher recorded when it submitted: job, via, fingerprint, submitted; else {}."""
        return read_json(self.stage(stage) / "submission.json") or {}

    def write_submission(self, stage: str, **facts: Any) -> None:
        """Record a submission (whole: nothing of an earlier one remains), made now unless `submitted` says when."""
        write_json(self.stage(stage) / "submission.json", {"submitted": now(), **facts})

    def new_attempt(self, stage: str) -> int:
        """Make the folder of the next attempt and point `latest.out` to its first rank; its number, from 1."""
        folder = self.stage(stage)
        number = 1 + max((int(p.name.partition("-")[2]) for p in folder.glob("attempt-*")), default=0)
        try:
            self.attempt_log(stage, number).parent.mkdir(parents=True)
            link = folder / f".latest.{os.getpid()}"
            link.symlink_to(Path(f"attempt-{number}") / "rank0.out")
            link.replace(folder / "latest.out")
        except OSError as error:
            raise cannot_write(folder, error) from error
        return number

    def next_attempt(self, stage: str, attempt: int) -> Path:
        """The folder that the attempt after this one makes first of all: when it is there, this one is not the last."""
        return self.stage(stage) / f"attempt-{attempt + 1}"

    def write_attempt(self, stage: str, attempt: int, **facts: Any) -> None:
        """Record what an attempt begins with: its job and how far the stage had come."""
        write_json(self.stage(stage) / f"attempt-{attempt}" / "attempt.json", facts)

    def attempts(self, stage: str) -> list[dict[str, Any]]:
        """What every attempt began with, the oldest first; {} for one that recorded nothing."""
        folders = sorted(self.stage(stage).glob("attempt-*"), key=lambda path: int(path.name.partition("-")[2]))
        return [read_json(folder / "attempt.json") or {} for folder in folders]

    def attempt_log(self, stage: str, attempt: int, rank: int = 0) -> Path:
        """Output of one rank of one attempt."""
        return self.stage(stage) / f"attempt-{attempt}" / f"rank{rank}.out"

    def latest_log(self, stage: str) -> Path:
        """Output of the first rank of the newest attempt."""
        return self.stage(stage) / "latest.out"

    def log_metrics(self, stage: str, values: dict[str, Any]) -> None:
        """Append one line of metrics."""
        append_json(self.metrics(stage), {"time": now(), **values})

    def metrics_bytes(self, stage: str) -> int:
        """Length of a stage's metrics file; 0 when there is none."""
        path = self.metrics(stage)
        return path.stat().st_size if path.exists() else 0

    def cut_metrics(self, stage: str, length: int) -> None:
        """Take away what was logged after the checkpoint that a stage goes on from: it will be logged again."""
        if self.metrics_bytes(stage) > length:
            os.truncate(self.metrics(stage), length)

    def read_metrics(self, stage: str) -> list[dict[str, Any]]:
        """All lines of metrics; a torn last line is passed over."""
        return read_json_lines(self.metrics(stage))

    def log_event(self, event: str, stage: str = "", **facts: Any) -> None:
        """Append one line to the run's timeline."""
        kept = {key: value for key, value in facts.items() if value not in ("", None)}
        append_json(self.logs / "events.jsonl", {"time": now(), "stage": stage, "event": event, **kept})

    def events(self) -> list[dict[str, Any]]:
        """The run's timeline, oldest first: submissions, attempts, ends, cancellations."""
        return read_json_lines(self.logs / "events.jsonl")

    def transaction(self) -> dict[str, Any]:
        """The submission that began last: stages, state (`open` until its jobs are released); else {}."""
        return read_json(self.logs / "transaction.json") or {}

    def write_transaction(self, **facts: Any) -> None:
        """Record the submission at work; facts not given stay as they are."""
        write_json(self.logs / "transaction.json", {**self.transaction(), **facts, "updated": now()})

    def queue_seen(self) -> dict[str, Any]:
        """The last look at Slurm's queue that succeeded: when, and what it said of this run's jobs; else {}."""
        return read_json(self.logs / "queue.json") or {}

    def write_queue_seen(self, seen: dict[str, Any]) -> None:
        """Record a look at Slurm's queue."""
        write_json(self.logs / "queue.json", seen)

    def comment(self, stage: str, fingerprint: str) -> str:
        """What a job of this run carries as its comment; the last part tells runs of one name in two places apart."""
        place = hashlib.sha256(str(self.logs.resolve()).encode()).hexdigest()[:8]
        return f"{self.name}/{stage}/{fingerprint}/{place}"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only launcher of this run. Raises UserError when another one is at work."""
        with lock(self.logs / ".lock", f"pid {os.getpid()} on {os.uname().nodename} since {now()}"):
            yield

    def own_folders(self, recipe: Recipe | None) -> list[Path]:
        """What `--fresh` deletes: the logs, models and results of this run; nothing shared with other runs."""
        names = ["base", *([entry.name for entry in recipe.stages] if recipe else [])]
        folders = [self.logs, self.results, *map(self.model, names), *map(self.merged, names)]
        return [p for p in folders if p.exists()]


def known_runs(root: Path) -> list[str]:
    """Names of the runs under a root, newest first."""
    found = [p.parent for p in (root / "logs").glob("*/resolved.yaml")]
    return [p.name for p in sorted(found, key=lambda p: (p / "resolved.yaml").stat().st_mtime, reverse=True)]
