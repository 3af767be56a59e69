"""The DAG on this machine: one stage after the other, through the same job body, with progress on the terminal."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console

from pipeline.errors import StageFailed
from pipeline.run import RunDir
from pipeline.submit.plan import Plan
from pipeline.submit.status import last_metric
from pipeline.submit.transaction import job_variables

POLL_SECONDS = 0.2
LINE_SECONDS = 30.0
"""How often a line is printed where the output is no terminal."""
STOP_SECONDS = 120.0
"""How long a stage may take to save after Ctrl-C."""
SHOWN_LINES = 15


def run_locally(plan: Plan, console: Console) -> None:
    """Run the plan's stages in order. Raises StageFailed with the end of the log of the first that fails.

    Ctrl-C ends the running stage's processes, which record that they were interrupted, and raises KeyboardInterrupt;
    so does SIGTERM, and the SIGHUP of a connection that was lost, unless `nohup` has it ignored.
    """
    for ending in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(ending) is signal.SIG_DFL:
            signal.signal(ending, signal.default_int_handler)
    for each in plan.to_run:
        name = each.stage.name
        plan.run.write_submission(name, job="", via="local", fingerprint=each.stage.fingerprint)
        started = time.monotonic()
        code = _run_stage(plan, name, console)
        seconds = time.monotonic() - started
        if code:
            raise _failure(plan.run, name, code)
        console.print(f"[green]done[/]  {name}  {_clock(seconds)}  {last_metric(plan.run, name)}", highlight=False)


def _run_stage(plan: Plan, name: str, console: Console) -> int:
    """Exit code of one stage; its output goes to its attempt's log and to one file beside Slurm's."""
    run, output = plan.run, plan.run.local_output(name)
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("ab") as file:
        child = subprocess.Popen(
            ["bash", str(plan.home / "slurm" / "stage.sh"), str(run.logs), name],
            env={**os.environ, **job_variables(plan)}, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
    try:
        _watch(child, run, name, console)
    finally:
        _stop(child)
    return child.returncode


def _watch(child: subprocess.Popen[bytes], run: RunDir, name: str, console: Console) -> None:
    started = printed = time.monotonic()
    with console.status(name, spinner="dots") as spinner:
        while child.poll() is None:
            time.sleep(POLL_SECONDS)
            words = f"{name}  {_clock(time.monotonic() - started)}  {last_metric(run, name)}"
            if console.is_terminal:
                spinner.update(words)
            elif time.monotonic() - printed > LINE_SECONDS:
                printed = time.monotonic()
                console.print(words, highlight=False)


def _stop(child: subprocess.Popen[bytes]) -> None:
    """End a job body that still runs (Ctrl-C came): it lets the stage save, and records it. Kill what does not end.

    A second Ctrl-C kills at once; the processes of a killed job body end with it.
    """
    if child.poll() is None:
        print("the running stage saves what it has; Ctrl-C again ends it at once", file=sys.stderr, flush=True)
        os.killpg(child.pid, signal.SIGTERM)
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(STOP_SECONDS)
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()


def _failure(run: RunDir, name: str, code: int) -> StageFailed:
    reason = str(run.state(name).get("reason") or "no reason was recorded")
    failure = StageFailed(
        f"stage {name} failed",
        value=reason,
        where=str(_log(run, name)),
        do="read the log; `run` again goes on from here",
    )
    failure.exit_code = code if code in (2, 3, 130) else 1
    return failure


def _log(run: RunDir, name: str) -> Path:
    latest = run.latest_log(name)
    return latest if latest.exists() else run.local_output(name)


def log_lines(path: Path, lines: int) -> list[str]:
    """The last lines of a log."""
    return path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
