"""The processes of a stage as its job body sees them: output to the log, stop signals turned into a wish to stop."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from pipeline.records import read_json
from pipeline.run import HOME
from pipeline.training.ranks import die_with_parent
from pipeline.training.stop import STOP_FILE, STOPPED_CODE, STOPPED_FILE

LOOK = 2.0
"""Seconds between looks whether a later attempt has begun."""
GRACE = 3.0
"""Seconds in which our own stop signal may follow the one that ended the stage: Slurm signals one after the other."""
WORD = re.compile(rb"\w")
ERROR = re.compile(rb"(\[rank\d+\]: )?(error|([a-zA-Z_]\w*\.)*\w*(Error|Exception)): \S")
"""The last line of a traceback, with the rank where torch names it; or an error of ours, which has none."""
ASKED = (signal.SIGTERM, signal.SIGINT)
"""Signals after which nothing that a stage has not saved is waited for; SIGUSR1 only asks to save in time."""


def failure(code: int, last_line: bytes) -> str:
    """Why a process failed: its last words, and the signal that killed it (a negative code, as subprocess has it)."""
    words = last_line.decode(errors="replace").rpartition("\r")[2][-300:]
    if code >= 0:
        return words or f"exit code {code}"
    killed = f"killed by {signal.Signals(-code).name}"
    return f"{killed}; its last line: {words}" if words else killed


class Child:
    """The stage's processes, and what to do about signals.

    Made before anything is recorded, so that no signal finds the job body without a handler.
    """

    def __init__(self) -> None:
        self.stopped_by: signal.Signals | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self.folder: Path | None = None
        self.alone = True
        for number in (*ASKED, signal.SIGUSR1):
            signal.signal(number, self._stop)

    def run(
        self, command: Sequence[str], environment: dict[str, str], log: Path, successor: Path, *, alone: bool = True
    ) -> tuple[int, str]:
        """(exit code, reason): 130 when the stage was stopped, of a failure with the last words of the output.

        `alone` says that the command is the stage's only process. Else it is a launcher, which would kill the ranks
        when it is told to end: it does not hear of signals, the ranks poll the stop file beside the log.
        When `successor` appears, a later attempt is at work on another node, as this one was taken for dead: the
        processes are killed, so that two never write the same files.
        """
        self.folder, self.alone = log.parent, alone
        if self.stopped_by in ASKED:
            return STOPPED_CODE, self._told()
        self.process = subprocess.Popen(
            command, env=environment, cwd=HOME, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, start_new_session=True, preexec_fn=self._prepare,
        )  # fmt: skip
        if self.stopped_by:  # the signal came while the process was being made
            self._ask()
        over = threading.Event()
        threading.Thread(target=self._give_way, args=(self.process.pid, successor, over), daemon=True).start()
        last_words = self._copy_output(log)
        code = self.process.wait()
        over.set()
        if -code in ASKED:
            self._await_own_signal()
        stopped = read_json(self.folder / STOPPED_FILE)
        if stopped or (code and self.stopped_by in ASKED):
            return STOPPED_CODE, self._told() + (f" {stopped['progress']}" if stopped else "")
        return (0, "") if code == 0 else (code if code in (2, 3) else 1, failure(code, last_words))

    def kill(self, reason: str) -> None:
        """End the processes at once, as what they need is gone."""
        print(reason, flush=True)
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)

    def _give_way(self, group: int, successor: Path, over: threading.Event) -> None:
        while not over.wait(LOOK):
            if successor.exists():
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(group, signal.SIGKILL)
                return

    def _prepare(self) -> None:
        """In the new process, before it becomes the command."""
        die_with_parent()
        for number in (signal.SIGUSR1,) if self.alone else (signal.SIGUSR1, *ASKED):
            signal.signal(number, signal.SIG_IGN)

    def _await_own_signal(self) -> None:
        """Wait for the signal that told the stage to end: who stops a job tells its body too."""
        deadline = time.monotonic() + GRACE
        while self.stopped_by not in ASKED and time.monotonic() < deadline:
            time.sleep(0.05)

    def _told(self) -> str:
        return f"stopped by {self.stopped_by.name if self.stopped_by else 'a signal'}"

    def _copy_output(self, path: Path) -> bytes:
        """Copy the output to the log and to our own until it ends; its last words.

        Below a launcher these are the first error that a rank raised: what follows is the launcher's own account.
        """
        assert self.process is not None and self.process.stdout is not None
        last_line = first_error = b""
        with path.open("ab") as log:
            for line in self.process.stdout:
                log.write(line)
                log.flush()
                sys.stdout.buffer.write(line)
                sys.stdout.buffer.flush()
                last_line = line.strip() if WORD.search(line) else last_line
                if not first_error and ERROR.match(line):
                    first_error = line.strip()
        return last_line if self.alone else first_error or last_line

    def _stop(self, number: int, _: object) -> None:
        impatient = number == signal.SIGINT and self.stopped_by in ASKED
        if self.stopped_by not in ASKED:
            self.stopped_by = signal.Signals(number)
        os.write(1, f"{signal.Signals(number).name}: the stage is asked to save and stop\n".encode())
        if self.process is not None and impatient:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        elif self.process is not None:
            self._ask()

    def _ask(self) -> None:
        """Ask the stage to save and stop; a stage that cannot, such as preprocess, ends at SIGTERM."""
        assert self.process is not None and self.folder is not None
        (self.folder / STOP_FILE).touch()
        if self.alone and self.stopped_by in ASKED:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGTERM)
