"""Tests of untrusted programs: the program in one sandbox, its tests in another, and this process between them.

The program's sandbox learns the arguments of the calls and nothing else; its answers are text, which the tests'
sandbox reads as plain values. What should come out never goes where the program is.
"""

from __future__ import annotations

import json
import os
import queue
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.errors import StageFailed
from pipeline.recipe_questions import GRADED
from pipeline.rewards.isolation import Isolated, Limits, Silent, isolated_python

INSIDE = Path(__file__).parent / "sandboxed"
CHECKER_SECONDS = 4.0
"""What the tests themselves may take, beside the time of the program."""


@dataclass(frozen=True)
class Checks:
    """The tests of one row of a data set."""

    context: str
    """Run before them, where they run: imports, and helpers that they use."""
    names: dict[str, str]
    """What the program defines, by the names that the tests use."""
    statements: tuple[tuple[str, bool], ...]
    """Python statements in order, and whether each is a test that counts."""


@dataclass(frozen=True)
class Program:
    """An untrusted program."""

    source: str
    trim: bool = False
    """Whether lines may be left off its end until it is one: a text that goes on after the program."""


@dataclass(frozen=True)
class Outcome:
    """What became of the tests."""

    passed: tuple[bool, ...]
    reason: str
    """Why the first test that failed did; empty when all passed."""

    @property
    def share(self) -> float:
        """Share of the tests that passed."""
        return sum(self.passed) / len(self.passed)


class Sandbox:
    """Runs tests, several at once. Each program has a sandbox of its own; the tests' sandboxes are used again."""

    def __init__(self, limits: Limits | None = None, workers: int | None = None) -> None:
        """Raises UserError where no sandbox can be made."""
        self.limits = limits or Limits()
        self.command = isolated_python()
        self._pool = ThreadPoolExecutor(workers or len(os.sched_getaffinity(0)), thread_name_prefix="sandbox")
        self._checkers: queue.SimpleQueue[Isolated] = queue.SimpleQueue()

    def run(self, program: Program, tests: Checks) -> Outcome:
        """The outcome for one program. Raises StageFailed when the tests themselves are broken or have no answer."""
        return self.run_all([(program, tests)])[0]

    def run_all(self, cases: Sequence[tuple[Program, Checks]]) -> list[Outcome]:
        """The outcomes of many programs, in order. Threads of the pool start all processes: they live no longer."""
        return list(self._pool.map(lambda case: self._run(*case), cases))

    def close(self) -> None:
        """End all processes."""
        self._pool.shutdown()
        while not self._checkers.empty():
            self._checkers.get().kill()

    def _run(self, program: Program, tests: Checks) -> Outcome:
        candidate = Isolated(self.command, program_text("candidate"), self.limits.reply_bytes)
        try:
            checker = self._checker()
            try:
                verdicts = _converse(candidate, checker, program, tests, self.limits)
            except Silent as silent:
                checker.kill()  # it hangs over the values that it was given, or was ended for their size
                count = sum(is_test for _, is_test in tests.statements)
                return Outcome((False,) * count, f"the tests did not end: {silent}")
            self._checkers.put(checker)
            return _outcome(verdicts)
        finally:
            candidate.kill()

    def _checker(self) -> Isolated:
        """A checker that waits for tests: one that is there, else a new one."""
        while True:
            try:
                waiting = self._checkers.get_nowait()
            except queue.Empty:
                break
            if waiting.process.poll() is None:
                return waiting
            waiting.kill()
        started = Isolated(self.command, program_text("checker"), self.limits.reply_bytes)
        limits = {k: v for k, v in self.limits.inside().items() if k != "RLIMIT_CPU"}  # it works on and on
        started.send(json.dumps({"limits": limits}).encode(), time.monotonic() + CHECKER_SECONDS)
        return started


@cache
def shared_sandbox() -> Sandbox:
    """The sandbox of this process. Raises UserError where none can be made."""
    return Sandbox()


def require_sandbox(tasks: Iterable[str]) -> None:
    """Raise UserError, before any work is done, where programs are to be tested and cannot be isolated."""
    if any(GRADED.get(task) == "code_execution" for task in tasks):
        shared_sandbox()


def _converse(candidate: Isolated, checker: Isolated, program: Program, tests: Checks, limits: Limits) -> Any:
    """Carry calls to the program and its answers back until the verdicts come. Raises Silent for a silent checker."""
    until = time.monotonic() + limits.seconds
    last = until + CHECKER_SECONDS
    gone = _told(candidate, {"limits": limits.inside(), "source": program.source, "trim": program.trim}, until)
    request = {"context": tests.context, "names": tests.names, "statements": tests.statements}
    checker.send(json.dumps(request).encode(), last)
    while (line := checker.receive(last))[:5] == b"calls":
        reply = b""
        if gone is None:
            try:
                candidate.send(line[5:], until)
                reply = candidate.receive(until)
            except Silent as silent:
                gone = str(silent)
        checker.send(reply if gone is None else b"error" + json.dumps(gone).encode(), last)
    return json.loads(line[5:])


def _told(candidate: Isolated, request: dict[str, Any], until: float) -> str | None:
    """Give the program to its sandbox; why that cannot be done, if so."""
    try:
        candidate.send(repr(request).encode("utf-8", "backslashreplace"), until)
    except Silent as silent:
        return str(silent)
    return None


def _outcome(verdicts: Any) -> Outcome:
    if isinstance(verdicts, str):
        raise StageFailed("the tests of a row do not run", value=verdicts, where="the data set", do="mend its tests")
    return Outcome(tuple(passed for passed, _ in verdicts), next((why for passed, why in verdicts if not passed), ""))


@cache
def program_text(name: str) -> str:
    """The program of a sandboxed process: the modules that it needs, made from their sources, and then its own."""
    lines = ["from __future__ import annotations", "import sys", "module = type(sys)"]
    for part in ("channel", "values"):
        text = (INSIDE / f"{part}.py").read_text(encoding="utf-8")
        place = f"sys.modules['pipeline.rewards.sandboxed.{part}']"
        lines += [f"{place} = module({part!r})", f"exec({text!r}, {place}.__dict__)"]
    main = (INSIDE / f"{name}.py").read_text(encoding="utf-8").replace("from __future__ import annotations\n", "")
    return "\n".join([*lines, main])
