"""The jobs of a sweep: every trial an ordinary chain, so many at once, and a comparison after all of them.

Trial k waits until the jobs of trial k - n are over, well or not: so at most n trials are at work at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline import dag
from pipeline.cluster import environment_script, sbatch_flags
from pipeline.dag import Stage
from pipeline.errors import UserError
from pipeline.recipe import KINDS, Resources
from pipeline.records import write_atomic
from pipeline.run import RunDir
from pipeline.snapshot import code_hash, take_snapshot
from pipeline.submit import slurm
from pipeline.submit.jobs import live_jobs
from pipeline.submit.plan import Plan, StagePlan
from pipeline.submit.sbatch import compare_script
from pipeline.submit.sweep import COMPARE, Sweep, recorded_trials, results_page, results_table
from pipeline.submit.transaction import Jobs, Submission, afterany, placeholders, sbatch_commands

RESOURCES = Resources(time="00:30:00", cpus=1, memory="4G")
"""What the comparison asks for: it reads prediction files and draws bootstrap samples."""


Add = Callable[[Plan, Jobs, Sequence[str]], dict[str, list[str]]]
"""What submits a plan but the stages that have a job, after other jobs have ended; job ids by stage."""


@dataclass(frozen=True)
class Part:
    """What is to be submitted of a trial: the stages of its plan but those that have a job already (`kept`).

    The jobs `stale` are of other settings or code, and could never start.
    """

    plan: Plan
    kept: Jobs
    stale: tuple[str, ...] = ()

    @property
    def new(self) -> int:
        """How many jobs it adds."""
        return sum(self.plan.segments(name) for name in self.plan.names_to_run if name not in self.kept)


@dataclass(frozen=True)
class SweepJobs:
    """Job ids: of the trials that were submitted, by run and stage, and of the comparison (or empty)."""

    trials: dict[str, dict[str, list[str]]]
    compare: str


def check_limit(sweep: Sweep, parts: Sequence[Part]) -> None:
    """Raises UserError when the site does not take so many jobs of one user."""
    limit = sweep.cluster.submit_limit
    new = sum(part.new for part in parts) + 1
    there = sum(not job.ended for job in slurm.queue().values()) if limit else 0
    if limit and new + there > limit:
        raise UserError(
            f"the sweep is {new} jobs more (of {len(parts)} trials and their comparison), {there} of yours are in the "
            f"queue, and this site takes at most", value=limit, where="submit_limit in configs/cluster.yaml",
            do="sweep fewer values at a time: the same sweep with more values goes on where this one ends",
        )  # fmt: skip


def submit_sweep(sweep: Sweep, parts: Sequence[Part], *, compare: bool) -> SweepJobs:
    """Submit the trials' jobs and, if asked, the comparison: all of them or none.

    The files of the trials are written; the caller holds the locks of the sweep and of its trials. Raises UserError
    with Slurm's own words.
    """
    slurm.cancel([job for part in parts for job in part.stale])
    queued = slurm.queue()
    alive = {
        trial.run.name: [job.job for jobs in live_jobs(trial.run, queued).values() for job in jobs]
        for trial in sweep.trials
    }
    before = [job.job for job in live_jobs(sweep.run, queued).get(COMPARE, [])]
    every = [job for jobs in alive.values() for job in jobs]
    with Submission() as submission:
        found = _in_lanes(sweep, {part.plan.run.name: part for part in parts}, alive, submission.add)
        every += [job for stages in found.values() for jobs in stages.values() for job in jobs]
        plan = compare_plan(sweep)
        kept = {COMPARE: before} if before and not any(part.new for part in parts) else {}
        if compare and (kept or any(part.new for part in parts) or not compared(plan)):
            write_compare(plan)
            kept = submission.add(plan, kept, list(dict.fromkeys(every)))
    if before and kept and kept[COMPARE] != before:
        slurm.cancel(before)  # it waited for fewer jobs
    return SweepJobs(found, " ".join(kept.get(COMPARE, [])))


def _in_lanes(
    sweep: Sweep, parts: Mapping[str, Part], alive: Mapping[str, list[str]], add: Add
) -> dict[str, dict[str, list[str]]]:
    """Submit the trials by `add`; job ids by trial and stage. `alive` are the jobs that each trial has now.

    Of trials with the same processed data only the first makes it: the others begin when that is over.
    """
    width = sweep.cluster.sweep_at_once
    lanes: list[list[str]] = [[] for _ in range(width)]
    for number, trial in enumerate(sweep.trials):
        lanes[number % width] += alive.get(trial.run.name, [])
    makers: dict[Path, list[str]] = {}
    found: dict[str, dict[str, list[str]]] = {}
    for number, trial in enumerate(sweep.trials):
        part = parts.get(trial.run.name)
        if part is None:
            continue
        data = {each.stage.name: path for each in part.plan.to_run if (path := dataset(each.stage))}
        shared = [job for path in data.values() for job in makers.get(path, [])]
        waits = [] if part.kept else [*lanes[number % width], *shared]
        found[trial.run.name] = add(part.plan, part.kept, list(dict.fromkeys(waits)))
        for stage, path in data.items():
            makers.setdefault(path, found[trial.run.name][stage])
        lanes[number % width] += [job for jobs in found[trial.run.name].values() for job in jobs]
    return found


def dataset(stage: Stage) -> Path | None:
    """The folder of processed rows that a stage makes, if it makes one."""
    return stage.outputs[0] if KINDS[stage.kind].makes == "dataset" else None


def compare_plan(sweep: Sweep) -> Plan:
    """The comparison as the plan of a run with one stage."""
    cluster, run = sweep.cluster, sweep.run
    stages = [dag.build(trial.recipe, trial.run) for trial in sweep.trials]
    facts = [f"{stage.name} {stage.fingerprint}" for each in stages for stage in each.values()]
    fingerprint = hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]
    stage = Stage(COMPARE, COMPARE, (), {}, (results_page(run), results_table(run)), fingerprint)
    script = compare_script(run.name, RESOURCES, memory=cluster.memory == "mem")
    each = StagePlan(stage, "run", "after all trials", script, tuple(sbatch_flags(cluster, RESOURCES)), None)
    return Plan(sweep.trials[0].recipe, run, cluster, (each,), run.code(code_hash()))


def compared(plan: Plan) -> bool:
    """Whether the comparison of the trials as they are now is there."""
    done = plan.run.done(COMPARE)
    return bool(done and done.fingerprint == plan.stages[0].stage.fingerprint)


def write_compare(plan: Plan) -> None:
    """Write what the comparison's job reads. Raises UserError."""
    take_snapshot(plan.home)
    write_atomic(plan.run.environment, environment_script(plan.cluster))
    write_atomic(plan.run.script(COMPARE), plan.stages[0].script)


def rewire_compare(run: RunDir) -> None:
    """Have a comparison that waits wait for the jobs that the trials have now. Raises PipelineError, UserError."""
    queued = slurm.queue()
    waiting = [job.job for job in live_jobs(run, queued).get(COMPARE, []) if job.state == "PENDING"]
    trials = [live_jobs(trial, queued) for trial, _ in recorded_trials(run)]
    every = [job.job for stages in trials for jobs in stages.values() for job in jobs]
    if waiting and every:
        slurm.set_dependency(waiting[0], afterany(every))


def commands(sweep: Sweep, plans: Sequence[Plan], *, compare: bool) -> dict[str, dict[str, list[list[str]]]]:
    """The sbatch command lines that would submit the plans, by run and stage, with names in place of job ids."""
    found: dict[str, dict[str, list[list[str]]]] = {}

    def add(plan: Plan, _: Jobs, waits: Sequence[str]) -> dict[str, list[str]]:
        names = {name: placeholders(plan, name, f"{plan.run.name}/") for name in plan.names_to_run}
        found[plan.run.name] = {each.stage.name: _commands(plan, each, names, waits) for each in plan.to_run}
        return names

    made = _in_lanes(sweep, {plan.run.name: Part(plan, {}) for plan in plans}, {}, add)
    if compare:
        add(compare_plan(sweep), {}, [job for stages in made.values() for jobs in stages.values() for job in jobs])
    return found


def _commands(plan: Plan, each: StagePlan, names: Jobs, waits: Sequence[str]) -> list[list[str]]:
    first = not any(need in names for need in each.stage.needs)
    return list(sbatch_commands(plan, each, names, names[each.stage.name], waits if first else ()))
