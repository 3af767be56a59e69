"""Verbs that look: status, why, logs, report."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Annotated, Any

import typer
from rich.live import Live

from pipeline import show
from pipeline.errors import NeedsMissing
from pipeline.evaluation.schema import read_comparison
from pipeline.recipe import Recipe
from pipeline.run import RunDir
from pipeline.submit.jobs import adopt_if_torn
from pipeline.submit.local import log_lines
from pipeline.submit.look import Look
from pipeline.submit.plan import active_stages
from pipeline.submit.status import StageStatus, look_at
from pipeline.submit.why import why as why_of
from pipeline.verbs.arguments import (
    AsJson,
    RunArgument,
    StageArgument,
    check_stage,
    open_run,
    open_sweep,
    print_json,
    words_to_stderr,
)
from pipeline.verbs.sweep import status_of_sweep

WATCH_SECONDS = 5.0
"""How often `--watch` asks Slurm: seldom enough for a busy controller."""
LOG_LINES = 10_000


def status(
    name: RunArgument,
    as_json: AsJson = False,
    events: Annotated[bool, typer.Option("--events", help="the timeline of the run too")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="go on until nothing is queued or running")] = False,
) -> None:
    """Show the state of every stage of a run, or of every run of a sweep; works without sacct."""
    if sweep := open_sweep(name):
        status_of_sweep(sweep, as_json, events, watch)
        return
    folder, settings = open_run(name)
    adopt_if_torn(folder)
    if watch:
        _watch(folder, settings, as_json)
        return
    states, seen = look_at(folder, settings)
    if as_json:
        print_json(_status_json(folder, states, seen) | ({"events": folder.events()} if events else {}))
        return
    show.states(states, seen)
    show.remedies(folder, settings)
    show.health(folder, settings)
    if events:
        show.events(folder.events())


def _status_json(folder: RunDir, states: list[StageStatus], seen: Look) -> dict[str, Any]:
    queue = {"seen": seen.seen, "age_seconds": seen.age, "error": seen.error}
    stages = [
        {
            **each.as_dict(),
            "health": show.health_found(folder, each.stage),
            "remedies": [remedy.as_dict() for remedy in folder.remedies(each.stage)],
        }
        for each in states
    ]
    return {"run": folder.name, "stages": stages, "queue": queue}


def _watch(folder: RunDir, settings: Recipe, as_json: bool) -> None:
    """A live table on a terminal; elsewhere a table (or a line of JSON) whenever something has changed."""
    shown: list[tuple[str, str, str]] = []
    with Live(console=show.console, auto_refresh=False) as live:
        while True:
            states, seen = look_at(folder, settings)
            now = [(each.stage, each.state, each.reason) for each in states]
            if show.console.is_terminal and not as_json:
                live.update(show.states_table(states, seen), refresh=True)
            elif now != shown:
                print_json(_status_json(folder, states, seen)) if as_json else show.states(states, seen)
            shown = now
            if not active_stages([(each.stage, each.state) for each in states]):
                return
            time.sleep(WATCH_SECONDS)


def why(name: RunArgument, stage: StageArgument = None, as_json: AsJson = False) -> None:
    """Explain why a stage waits, or show where it failed; by default the first stage that is in trouble."""
    folder, settings = open_run(name)
    check_stage(folder, settings, stage)
    adopt_if_torn(folder)
    answer = why_of(folder, settings, *look_at(folder, settings), stage)
    timeline = [event for event in folder.events() if event["stage"] == answer.stage]
    if as_json:
        print_json({"run": name, **answer.as_dict(), "events": timeline})
        return
    show.why(answer)
    show.events(timeline)


def logs(
    name: RunArgument,
    stage: Annotated[str | None, typer.Argument(help="a stage; the newest one by default")] = None,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="go on as the log grows")] = False,
    attempt: Annotated[int | None, typer.Option(help="an earlier attempt; the newest by default")] = None,
    as_json: AsJson = False,
) -> None:
    """Show the log of a stage's newest attempt."""
    folder, settings = open_run(name)
    check_stage(folder, settings, stage)
    begun = [entry.name for entry in settings.stages if folder.latest_log(entry.name).exists()]
    if stage not in begun and (stage or not begun):
        raise NeedsMissing("no log yet", value=stage or name, where=str(folder.logs), do="see `status`")
    chosen = stage or begun[-1]
    path = folder.latest_log(chosen) if attempt is None else folder.attempt_log(chosen, attempt)
    if not path.exists():
        raise NeedsMissing(
            "no such attempt", value=attempt, where=str(folder.stage(chosen)), do="`status --events` lists them"
        )
    if follow:
        sys.exit(subprocess.run(["tail", "-n", "50", "-F", str(path)], check=False).returncode)
    lines = log_lines(path, LOG_LINES)
    if as_json:
        print_json({"run": name, "stage": chosen, "path": str(path.resolve()), "lines": lines})
    else:
        print("\n".join(lines))


def report(name: RunArgument, as_json: AsJson = False) -> None:
    """Write report.html anew from what the run has; also after a failed run."""
    from pipeline.evaluation.report import write_report

    words_to_stderr(as_json)
    folder, _ = open_run(name)
    path = write_report(folder)
    show.console.print(f"report: {path}", highlight=False, soft_wrap=True)
    if read_comparison(folder.comparison):
        show.results(folder)
    if as_json:
        print_json({"run": name, "report": str(path)})
