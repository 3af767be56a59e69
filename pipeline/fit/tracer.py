"""Traces of steps: from the cache, else from a process that has torch (this one never imports it)."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from pipeline.errors import StageFailed
from pipeline.fit.step import Step
from pipeline.records import read_json, write_json
from pipeline.run import HOME

Terms = dict[str, float]


@dataclass(frozen=True)
class Trace:
    """What the tracer found: for each phase and term, bytes without layers and bytes a layer."""

    phases: dict[str, dict[str, list[float]]]
    seconds: float
    """CPU time that it took."""

    def at(self, layers: int) -> dict[str, Terms]:
        """Bytes by phase and term of a model with so many layers."""
        return {
            phase: {term: max(0.0, base + layers * each) for term, (base, each) in terms.items()}
            for phase, terms in self.phases.items()
        }


class Tracer:
    """Gives traces; starts a tracing process when one is not in the cache, and ends it on leaving.

    `folder` is the cache; `tell` hears of what takes seconds.
    """

    def __init__(self, folder: Path, tell: Callable[[str], None]) -> None:
        self.folder, self.tell = folder, tell
        self._process: subprocess.Popen[str] | None = None
        self._said: IO[str] | None = None

    def __enter__(self) -> Tracer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.communicate()
        if self._said is not None:
            self._said.close()

    def cached(self, step: Step) -> Trace | None:
        """A step's trace if the cache has it."""
        found = read_json(self.folder / f"{step.key}.json")
        return Trace(found["phases"], found["seconds"]) if isinstance(found, dict) and "phases" in found else None

    def trace(self, step: Step) -> Trace:
        """A step's trace. Raises StageFailed when it cannot be made."""
        found = self.cached(step)
        if found is not None:
            return found
        what = "generation" if step.new_tokens else "training step"
        self.tell(f"fit: tracing a {what} of {step.rows} x {step.tokens + step.new_tokens} tokens")
        answer = self._ask(step)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / f"{step.key}.json", answer)
        return Trace(answer["phases"], answer["seconds"])

    def _ask(self, step: Step) -> dict[str, Any]:
        if self._process is None:
            self.tell("fit: starting the tracer (torch; some seconds, once)")
            self._said = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 - lives as long as the process
            self._process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", "pipeline.fit.trace"], cwd=HOME, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said,
            )  # fmt: skip
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(asdict(step)) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self._failed()
        line = self._process.stdout.readline()
        if not line:
            self._failed()
        return dict(json.loads(line))

    def _failed(self) -> None:
        assert self._process is not None and self._said is not None
        self._process.communicate()
        self._process = None
        self._said.seek(0)
        words = self._said.read().strip().splitlines()
        raise StageFailed(
            "the memory tracer failed", value=words[-1] if words else "no output", where="pipeline/fit/trace.py",
            do="see whether this Python has the packages of requirements.txt",
        )  # fmt: skip
