"""What the verbs do with a sweep: start, show, retry and cancel it."""

from __future__ import annotations

import contextlib
import itertools
import shlex
import time
from collections.abc import Iterator, Sequence

from pipeline import show
from pipeline.cluster import load_cluster
from pipeline.errors import StageFailed, UserError
from pipeline.recipe import KINDS
from pipeline.records import remove
from pipeline.run import RunDir
from pipeline.submit.jobs import adopt, cancel_run, live_jobs, release_failed_launches
from pipeline.submit.local import run_locally
from pipeline.submit.plan import Choice, Plan, active_stages, make_plan
from pipeline.submit.retry import retry_plan
from pipeline.submit.start import Via, active, check_ready, has_gaps, start_over, write_files, write_scripts
from pipeline.submit.sweep import COMPARE, Sweep, Trial, read_sweep, record_file, results_page, write_sweep
from pipeline.submit.sweep_jobs import Part, SweepJobs, check_limit, commands, compare_plan, compared, submit_sweep
from pipeline.submit.sweep_status import SweepStatus, sweep_status
from pipeline.submit.transaction import split_live
from pipeline.verbs.arguments import as_texts, print_json
from pipeline.verbs.sweep_results import compare_trials

WATCH_SECONDS = 5.0
"""How often `status --watch` asks Slurm."""


def run_sweep(sweep: Sweep, choice: Choice, via: Via, as_json: bool) -> None:
    """Start what is missing of a sweep; on this machine, trial after trial. Raises StageFailed when a trial failed."""
    if via == "submitit":
        raise UserError("a sweep does not go through submitit", value=via, where="--via", do="use slurm or local")
    for trial in sweep.trials:
        check_ready(make_plan(trial.recipe, trial.run, sweep.cluster, choice))  # told before folders are made
    with _locked(sweep.run, sweep.trials):
        if choice.fresh:
            _start_over(sweep)
        for run in (sweep.run, *(trial.run for trial in sweep.trials)):
            adopt(run)
            if via == "slurm":
                release_failed_launches(run)
        plans = [plan for trial in sweep.trials if (plan := _plan(sweep, trial, choice, via))]
        wanted = _compares(sweep, choice)
        write_sweep(sweep)
        if via == "slurm":
            parts = [_part(plan) for plan in plans]
            check_limit(sweep, parts)
            for plan in plans:
                write_files(plan, via, sweep.run.name)
            _tell_jobs(sweep, submit_sweep(sweep, parts, compare=wanted), as_json)
            return
        for plan in plans:
            write_files(plan, via, sweep.run.name)
        _go_locally(sweep, plans, compare=wanted, as_json=as_json)


def show_sweep(sweep: Sweep, choice: Choice, as_json: bool) -> None:
    """The dry run: the trials, the plan of the first one in full, the commands of all."""
    plans = [make_plan(trial.recipe, trial.run, sweep.cluster, choice) for trial in sweep.trials]
    told = commands(sweep, plans, compare=_compares(sweep, choice))
    if as_json:
        trials = [
            {**show.plan_dict(plan), "changes": list(trial.changes), "commands": told.get(plan.run.name, {})}
            for trial, plan in zip(sweep.trials, plans, strict=True)
        ]
        compare = told.get(sweep.run.name, {}).get(COMPARE)
        print_json(
            {"sweep": sweep.run.name, "at_once": sweep.cluster.sweep_at_once, "trials": trials, "compare": compare}
        )
        return
    jobs = sum(len(commands) for each in told.values() for commands in each.values())
    show.console.print(f"sweep {sweep.run.name}: {_told(sweep)}, {jobs} jobs", markup=False, soft_wrap=True)
    for trial, plan in zip(sweep.trials, plans, strict=True):
        _decision(trial, plan)
    for run, each in told.items():
        for command in itertools.chain(*each.values()) if run != plans[0].run.name else ():
            show.console.print(f"$ {shlex.join(command)}", markup=False, soft_wrap=True)
    show.console.print("the plan of the first trial, whose scripts differ from the others' in names alone:")
    show.plan(plans[0], as_json=False)


def retry_sweep(name: RunDir, only: RunDir | None, stage: str | None, as_json: bool) -> None:
    """Start the failed stages of a sweep's trials again, or of one of them, and the comparison after that."""
    sweep = read_sweep(name, load_cluster())
    trials = [trial for trial in sweep.trials if only is None or trial.run.name == only.name]
    with _locked(sweep.run, trials):
        adopt(sweep.run)
        found = [retry_plan(trial.run, trial.recipe, sweep.cluster, stage) for trial in trials]
        parts = [Part(*each) for each in found if each]
        wanted = bool(sweep.run.submission(COMPARE))
        if not parts and (not wanted or compared(compare_plan(sweep))):
            show.console.print("nothing to retry: no stage of this sweep has failed")
        elif any(trial.run.read_resolved()[1]["via"] == "local" for trial in trials):
            for part in parts:
                write_scripts(part.plan)
            _go_locally(sweep, [part.plan for part in parts], compare=wanted, as_json=as_json)
            return
        check_limit(sweep, parts)
        for part in parts:
            write_scripts(part.plan)
        _tell_jobs(sweep, submit_sweep(sweep, parts, compare=wanted), as_json)


def cancel_sweep(name: RunDir, as_json: bool) -> None:
    """Cancel all jobs of a sweep, the last trials first: the end of a trial's jobs lets a later one start."""
    sweep = read_sweep(name, load_cluster())
    with _locked(sweep.run, sweep.trials):
        cancelled = {sweep.run.name: cancel_run(sweep.run, [COMPARE])}
        for trial in reversed(sweep.trials):
            cancelled[trial.run.name] = cancel_run(trial.run, [entry.name for entry in trial.recipe.stages])
    for run, jobs in cancelled.items():
        for stage, job in jobs.items():
            show.console.print(f"cancelled: {run} {stage} ({' '.join(job)})", markup=False, soft_wrap=True)
    if not any(cancelled.values()):
        show.console.print("nothing of this sweep is queued or running")
    if as_json:
        print_json({"sweep": sweep.run.name, "cancelled": {run: as_texts(jobs) for run, jobs in cancelled.items()}})


def status_of_sweep(name: RunDir, as_json: bool, events: bool, watch: bool) -> None:
    """One line a trial and one for the comparison; with `watch`, again and again until all is quiet."""
    shown: list[tuple[str, str, str]] = []
    while True:
        found = sweep_status(name)
        now = [(each.stage, each.state, each.reason) for each in found.lines]
        if now != shown:
            _show_status(name, found, as_json, events)
        shown = now
        if not watch or not active_stages([(each.stage, each.state) for each in found.lines]):
            return
        time.sleep(WATCH_SECONDS)


def _go_locally(sweep: Sweep, plans: Sequence[Plan], *, compare: bool, as_json: bool) -> None:
    """Trial after trial, on after a failure, then the comparison. Raises StageFailed when a trial failed."""
    failed = {}
    for plan in plans:
        show.console.print(f"trial {plan.run.name}", markup=False, soft_wrap=True)
        try:
            run_locally(plan, show.console)
        except StageFailed as error:
            if error.exit_code == 130:
                raise
            failed[plan.run.name] = str(error)
            show.console.print(f"failed: {error}", markup=False, soft_wrap=True)
    if compare:
        facts = compare_plan(sweep).stages[0].stage
        sweep.run.write_submission(COMPARE, job="", via="local", fingerprint=facts.fingerprint)
        compare_trials(sweep.run)
    if as_json:
        print_json({"sweep": sweep.run.name, **sweep_status(sweep.run).as_dict()})
    if failed:
        raise StageFailed(
            f"{len(failed)} of {len(sweep.trials)} trials failed", value=list(failed), where=f"sweep {sweep.run.name}",
            do="`why TRIAL` tells each; the same command again goes on from here",
        )  # fmt: skip


def _show_status(name: RunDir, found: SweepStatus, as_json: bool, events: bool) -> None:
    if as_json:
        print_json({"sweep": name.name, **found.as_dict()} | ({"events": name.events()} if events else {}))
        return
    show.states(found.lines, heading="trial")
    if found.error:
        show.console.print(f"Slurm does not answer: {found.error}", markup=False, soft_wrap=True)
    if events:
        show.events(name.events())


@contextlib.contextmanager
def _locked(run: RunDir, trials: Sequence[Trial]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for each in (run, *(trial.run for trial in trials)):
            stack.enter_context(each.locked())
        yield


def _start_over(sweep: Sweep) -> None:
    cancel_run(sweep.run, [COMPARE])
    for trial in sweep.trials:
        start_over(trial.run, trial.recipe, show.console)
    remove([record_file(sweep.run), sweep.run.results, sweep.run.stage(COMPARE)])


def _plan(sweep: Sweep, trial: Trial, choice: Choice, via: Via) -> Plan | None:
    """What is to be done of a trial; None where all is done or at work. Raises UserError as `run` does."""
    busy = active(trial.run, trial.recipe)
    if busy and not (via == "slurm" and has_gaps(trial.run, busy)):
        show.console.print(f"{trial.run.name} is at work already", markup=False, soft_wrap=True)
        return None
    plan = make_plan(trial.recipe, trial.run, sweep.cluster, choice)
    _decision(trial, plan)
    return plan if plan.to_run else None


def _decision(trial: Trial, plan: Plan) -> None:
    told = "; ".join(
        f"{action} {', '.join(names)}"
        for action in ("skip", "run")
        if (names := [each.stage.name for each in plan.stages if each.action == action])
    )
    show.console.print(f"{trial.run.name}: {told}", markup=False, soft_wrap=True)


def _part(plan: Plan) -> Part:
    keep, stale = split_live(plan, live_jobs(plan.run))
    return Part(plan, keep, tuple(stale))


def _compares(sweep: Sweep, choice: Choice) -> bool:
    """Whether stages were asked for that make results."""
    recipe = sweep.trials[0].recipe
    return any(KINDS[recipe.stage(name).kind].makes == "results" for name in choice.names(recipe))


def _told(sweep: Sweep) -> str:
    return f"{len(sweep.trials)} trials, at most {sweep.cluster.sweep_at_once} at once"


def _tell_jobs(sweep: Sweep, jobs: SweepJobs, as_json: bool) -> None:
    for run, stages in jobs.trials.items():
        told = ", ".join(f"{stage} {' '.join(ids)}" for stage, ids in stages.items())
        show.console.print(f"jobs of {run}: {told}", markup=False, soft_wrap=True)
    if jobs.compare:
        show.console.print(f"job of the comparison: {jobs.compare}")
    else:
        show.console.print(f"page: {results_page(sweep.run)}", markup=False, soft_wrap=True)
    show.console.print(f"sweep {sweep.run.name}: {_told(sweep)}; next: status {sweep.run.name}", markup=False)
    if as_json:
        trials = {run: as_texts(stages) for run, stages in jobs.trials.items()}
        print_json({"sweep": sweep.run.name, "trials": trials, "compare": jobs.compare})
