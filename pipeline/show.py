"""What the verbs print: tables, plans, hints. No decisions."""

from __future__ import annotations

import json
import shlex
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from pipeline.evaluation.schema import read_comparison
from pipeline.evaluation.summary import difference_lines, result_table, set_line
from pipeline.fit.recipe_fit import StageFit
from pipeline.recipe import Recipe
from pipeline.run import RunDir
from pipeline.submit.doctor import Check
from pipeline.submit.look import Look
from pipeline.submit.plan import Plan, StagePlan
from pipeline.submit.status import StageStatus, duration
from pipeline.submit.transaction import placeholders, sbatch_commands
from pipeline.submit.why import Why
from pipeline.verbs.fit_table import fit_lines, fit_table, stage_tree

console = Console(highlight=False)

COLOURS = {"done": "green", "running": "cyan", "failed": "red", "blocked": "red", "interrupted": "yellow"}


def states(found: list[StageStatus], seen: Look | None = None, heading: str = "stage") -> None:
    """The status table, the reasons below it, and how old it is where Slurm does not answer."""
    console.print(states_table(found, seen, heading))


def states_table(found: list[StageStatus], seen: Look | None = None, what: str = "stage") -> Group:
    """What `states` prints."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in (what, "state", "job", "elapsed", "attempt", "last metric"):
        table.add_column(heading, justify="right" if heading in ("elapsed", "attempt") else "left")
    for each in found:
        colour = COLOURS.get(each.state, "default")
        attempt = str(each.attempt or "")
        table.add_row(each.stage, f"[{colour}]{each.state}[/]", each.job, each.elapsed, attempt, each.metric)
    lines = [f"{each.stage} {each.state}: {each.reason}" for each in found if each.reason]
    if seen and not seen.fresh:
        last = f"the last look at the queue was {duration(seen.age)} ago" if seen.seen else "no look succeeded before"
        lines.append(f"Slurm does not answer; {last}: {seen.error}")
    return Group(table, *(Text(line) for line in lines))


def health(run: RunDir, recipe: Recipe) -> None:
    """What the training health checks found, a line each."""
    for stage in recipe.training_stages():
        for found in health_found(run, stage):
            console.print(f"warning: {stage}: {found}", markup=False, soft_wrap=True)


def remedies(run: RunDir, recipe: Recipe) -> None:
    """What failures changed by themselves, a line each."""
    for entry in recipe.stages:
        for remedy in run.remedies(entry.name):
            console.print(f"{entry.name} {remedy.told()}", markup=False, soft_wrap=True)


def health_found(run: RunDir, stage: str) -> list[str]:
    """What a stage's training health checks have found, with the step, in that order."""
    return [f"{line['health']} (step {line['step']})" for line in run.read_metrics(stage) if "health" in line]


def check(found: Check) -> None:
    """One thing that `doctor` looked at, and the fix for it."""
    word = {True: "[green]good[/]   ", False: "[red]wrong[/]  ", None: "[yellow]unknown[/]"}[found.good]
    console.print(f"{word} {escape(f'{found.name}: {found.told}')}", soft_wrap=True)
    if found.fix:
        console.print(f"        -> {found.fix}", markup=False, soft_wrap=True)


def events(timeline: Sequence[Mapping[str, Any]]) -> None:
    """The timeline of a run, a line an event."""
    for event in timeline:
        facts = {key: value for key, value in event.items() if key not in ("time", "stage", "event")}
        told = "  ".join(f"{key} {value}" for key, value in facts.items())
        words = f"{event['time']}  {event['stage'] or '-':<12} {event['event']:<12} {told}"
        console.print(words.rstrip(), markup=False, soft_wrap=True)


def why(answer: Why) -> None:
    """Why a stage waits, or where it failed."""
    console.print(f"{answer.stage} is {answer.state}" + (f": {answer.reason}" if answer.reason else ""), markup=False)
    if answer.explanation:
        console.print(answer.explanation, markup=False, soft_wrap=True)
    if answer.start:
        console.print(f"Slurm expects it to start at {answer.start}", markup=False)
    if answer.traceback:
        who = f"rank {answer.rank}" if answer.rank is not None else "the end of its log"
        console.print(f"{who}, in {answer.log}:", markup=False, soft_wrap=True)
        for line in answer.traceback:
            console.print(f"    {line}", markup=False, soft_wrap=True)


def decisions(plan: Plan) -> None:
    """One line a stage: run or skip, and why; then what the recipe asks for that is known to go wrong."""
    for each in plan.stages:
        if each.action != "leave":
            console.print(f"{each.action:<5} {each.stage.name}: {each.reason}", markup=False, soft_wrap=True)
    for warning in plan.warnings:
        console.print(f"warning: {warning}", markup=False, soft_wrap=True)


def place(plan: Plan, via: str, *, chosen: bool) -> None:
    """Where the stages will run, when nobody said so; or that there is nothing to run."""
    if not plan.to_run:
        console.print("nothing to do: every stage is done")
    elif via == "local" and not chosen:
        console.print("running on this machine, one stage after the other: no Slurm answers here")


def plan(plan: Plan, as_json: bool, fits: Sequence[StageFit] = (), unknown: Sequence[str] = ()) -> None:
    """The plan as a table with the exact commands and scripts, or as JSON; `fits` of its stages, and what is not known
    of them.
    """
    if as_json:
        print(json.dumps(plan_dict(plan, fits, unknown), indent=1))
        return
    console.print(
        f"run {plan.run.name} of recipe {plan.recipe.name}, under {plan.run.root}", markup=False, soft_wrap=True
    )
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("stage", "action", "needs", "time", "gpus", "cpus", "memory", "batch", "launcher"):
        table.add_column(heading)
    for each in plan.stages:
        r = plan.recipe.resources[each.stage.name]
        gpus = f"{r.nodes} x {r.gpus}" if r.nodes > 1 else str(r.gpus)
        needs = ", ".join(each.stage.needs) or "-"
        table.add_row(
            each.stage.name, each.action, needs, r.time, gpus, str(r.cpus), r.memory, _batch(plan, each), r.launcher
        )
    console.print(table)
    decisions(plan)
    if fits:
        console.print(fit_table(list(fits)))
    for line in [*(fit_lines(list(fits)) if fits else []), *unknown]:
        console.print(line, markup=False, soft_wrap=True)
    for each in plan.to_run:
        console.rule(f"{plan.run.script(each.stage.name)}", align="left", style="dim")
        console.print(each.script, markup=False, soft_wrap=True, end="")
        for command in _command(plan, each).splitlines():
            console.print(f"$ {command}", markup=False, soft_wrap=True)
    console.print("nothing was written or submitted")


def _batch(plan: Plan, each: StagePlan) -> str:
    if each.batch is None:
        return "-"
    total = plan.recipe.own(each.stage.name).global_batch_size
    world = total // (each.batch.micro * each.batch.accumulation)
    return f"{total} = {world} x {each.batch.micro} x {each.batch.accumulation}"


def _command(plan: Plan, each: StagePlan) -> str:
    names = {name: placeholders(plan, name) for name in plan.names_to_run}
    own = placeholders(plan, each.stage.name)
    return "\n".join(shlex.join(command) for command in sbatch_commands(plan, each, names, own))


def plan_dict(plan: Plan, fits: Sequence[StageFit] = (), unknown: Sequence[str] = ()) -> dict[str, Any]:
    """The plan for --json, with what `plan` shows of the stages' fits."""
    fitted = {each.work.name: stage_tree(each) for each in fits}
    stages = [{**_as_dict(plan, each), "fit": fitted.get(each.stage.name)} for each in plan.stages]
    return {"run": plan.run.name, "warnings": [*plan.warnings, *unknown], "stages": stages}


def _as_dict(plan: Plan, each: StagePlan) -> dict[str, object]:
    return {
        "stage": each.stage.name,
        "kind": each.stage.kind,
        "action": each.action,
        "reason": each.reason,
        "needs": list(each.stage.needs),
        "fingerprint": each.stage.fingerprint,
        "resources": plan.recipe.resources[each.stage.name].model_dump(),
        "batch": vars(each.batch) if each.batch else None,
        "outputs": [str(path) for path in each.stage.outputs],
        "script": each.script,
        "command": _command(plan, each),
    }


def submitted(run: RunDir, jobs: Mapping[str, Sequence[str]], before: Mapping[str, Sequence[str]]) -> None:
    """The job ids, those that stages kept too (`before`, by stage), and the commands that come next."""
    for stage, ids in jobs.items():
        word = "kept" if set(ids) <= set(before.get(stage, ())) else "submitted"
        console.print(f"{word} {stage}: job {' '.join(ids)}", soft_wrap=True)
    name = run.name
    console.print(f"next: bash run_pipeline.sh status {name} ; bash run_pipeline.sh logs {name} -f", soft_wrap=True)


def results(run: RunDir) -> None:
    """The result table, what differences mean, what attacks did, where the report is; nothing without results."""
    from pipeline.evaluation.robustness_page import result_lines  # its template engine is slow to load

    attacked = result_lines(run)
    for line in attacked:
        console.print(line, markup=False, soft_wrap=True)
    comparison = read_comparison(run.comparison)
    if comparison is None:
        if attacked:
            console.print(f"attacks: {run.robustness}\nreport:  {run.report}", markup=False, soft_wrap=True)
        return
    console.print(result_table(comparison))
    for line in difference_lines(comparison):
        console.print(line, markup=False, soft_wrap=True)
    for test, each in comparison.sets.items():
        console.print(set_line(test, each), markup=False, soft_wrap=True)
    console.print(f"table:  {run.comparison}\nreport: {run.report}", markup=False, soft_wrap=True)


def unexpected(error: Exception) -> int:
    """Print a usage error in one line (2), or a bug with its traceback (1); the exit code."""
    message = getattr(error, "format_message", None)  # the parser's own errors; typer does not export their class
    if message is not None:
        hint = "`python -m pipeline --help` lists the verbs"
        print(f"error: {message()} on the command line -> {hint}", file=sys.stderr)
        return 2
    traceback.print_exception(error)
    return 1
