"""What a run would do: each stage runs or is skipped, and why. Writes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline import dag
from pipeline.cluster import ClusterFile, sbatch_flags
from pipeline.dag import Stage
from pipeline.errors import NeedsMissing, UserError
from pipeline.fit.settle import check_targets
from pipeline.recipe import KINDS, Recipe
from pipeline.recipe_questions import SOURCES
from pipeline.records import Done, first_difference
from pipeline.run import HOME, RunDir
from pipeline.settings import nearest
from pipeline.snapshot import code_hash
from pipeline.submit.sbatch import stage_script
from pipeline.submit.segments import proposal, refuse_mixed, time_flags
from pipeline.tasks.source import check_source
from pipeline.training.batch import Batch, derive
from pipeline.training.packages import check_packages
from pipeline.training.served import check_served

Action = Literal["run", "skip", "leave"]


@dataclass(frozen=True)
class StagePlan:
    """One stage of a plan. `leave` is a stage that was not asked for."""

    stage: Stage
    action: Action
    reason: str
    script: str
    flags: tuple[str, ...]
    batch: Batch | None
    """How the global batch is shared out, for a training stage on the GPUs that the recipe asks for."""


@dataclass(frozen=True)
class Plan:
    """What a run would do."""

    recipe: Recipe
    run: RunDir
    cluster: ClusterFile
    stages: tuple[StagePlan, ...]
    home: Path
    """The copy of the code that the jobs run from."""

    @property
    def to_run(self) -> list[StagePlan]:
        """The stages that would run, in order."""
        return [each for each in self.stages if each.action == "run"]

    @property
    def by_name(self) -> dict[str, Stage]:
        """All stages of the recipe."""
        return {each.stage.name: each.stage for each in self.stages}

    def segments(self, stage: str) -> int:
        """How many jobs do the work of a stage, one after the other."""
        resources = self.recipe.resources.get(stage)
        return resources.segments if resources else 1

    @property
    def warnings(self) -> list[str]:
        """What is allowed but known to go wrong: in the recipe, and on this site."""
        here = [proposal(self.cluster, self.recipe, each.stage) for each in self.to_run]
        return [*self.recipe.warnings(), *filter(None, here)]

    @property
    def names_to_run(self) -> list[str]:
        """Names of the stages that would run, in order."""
        return [each.stage.name for each in self.to_run]


@dataclass(frozen=True)
class Choice:
    """Which stages were asked for: one, or from one on, or until one; whether to replace or delete finished ones."""

    only: str | None = None
    first: str | None = None
    last: str | None = None
    replace: bool = False
    fresh: bool = False

    def names(self, recipe: Recipe) -> set[str]:
        """The stages chosen. Raises UserError for a name that the recipe does not have."""
        names = [entry.name for entry in recipe.stages]
        for name in filter(None, (self.only, self.first, self.last)):
            if name not in names:
                raise UserError("unknown stage", value=name, where=f"recipe {recipe.name}", do=nearest(name, names))
        if self.only:
            return {self.only}
        start = names.index(self.first) if self.first else 0
        stop = names.index(self.last) + 1 if self.last else len(names)
        return set(names[start:stop])


def check_data(recipe: Recipe) -> None:
    """Raise UserErrors when a file that the recipe names is missing or breaks its format."""
    if recipe.task == "corr2cause":
        check_source(recipe.data.source)
    elif recipe.task in SOURCES:
        from pipeline.tasks.published import check_files  # brings all tasks, which no other plan needs

        check_files(recipe, recipe.training_stages())
    for entry in recipe.stages:
        if entry.kind == "triplets":
            from pipeline.tasks.injection_splits import check_triplets  # reads the files, as no other plan does

            check_triplets(recipe.data.source, recipe.own(entry.name))
    if recipe.data.teacher is not None:
        from pipeline.tasks.teacher import read_teacher  # brings the causal engine, which no other plan needs

        read_teacher(Path(recipe.data.teacher))
    for name in recipe.training_stages():
        if (pairs := recipe.sections[name].get("pairs")) is not None:
            from pipeline.tasks.preferences import read_preferences  # brings all tasks, which no other plan needs

            read_preferences(Path(pairs))


def make_plan(recipe: Recipe, run: RunDir, cluster: ClusterFile, choice: Choice, code: Path | None = None) -> Plan:
    """The plan for a run with the code as it is now, or with an earlier copy of it (`code`).

    Raises UserError when a batch does not divide, a data or teacher file is broken, a stage needs one in segments and
    another, or a finished stage would be overwritten; NeedsMissing when a stage that was not asked for is needed and
    not done.
    """
    check_data(recipe)
    check_packages(recipe)
    check_served(recipe)
    check_targets(recipe)
    stages = dag.build(recipe, run, code or HOME)
    chosen = choice.names(recipe)
    markers = {name: None if choice.fresh else run.done(name) for name in stages}
    decided = {name: _decide(run, stage, markers[name], name in chosen) for name, stage in stages.items()}
    if not choice.replace:
        _refuse_overwriting(run, stages, markers, decided)
    _refuse_missing_needs(run, stages, markers, decided)
    refuse_mixed(recipe, stages, [name for name, (action, _) in decided.items() if action == "run"])
    planned = tuple(_plan_stage(recipe, run, cluster, s, *decided[s.name]) for s in stages.values())
    return Plan(recipe, run, cluster, planned, code or run.code(code_hash()))


def _decide(run: RunDir, stage: Stage, done: Done | None, asked: bool) -> tuple[Action, str]:
    if not asked:
        return "leave", "not asked for"
    if done is None:
        return "run", "not done yet"
    if done.fingerprint != stage.fingerprint:
        return "run", f"settings, data or code changed since it was done ({done.finished})"
    difference = first_difference(run.root, done.outputs, thorough=False)
    return ("run", difference) if difference else ("skip", f"done {done.finished}, nothing changed")


def _refuse_overwriting(
    run: RunDir, stages: dict[str, Stage], markers: dict[str, Done | None], decided: dict[str, tuple[Action, str]]
) -> None:
    changed = [
        name
        for name, (action, _) in decided.items()
        if action == "run" and (done := markers[name]) and done.fingerprint != stages[name].fingerprint
    ]
    if changed:
        raise UserError(
            "finished stages have other settings, data or code now", value=changed, where=f"run {run.name}",
            do="--replace makes them anew; --run-name NAME keeps both; --fresh starts over",
        )  # fmt: skip


def _refuse_missing_needs(
    run: RunDir, stages: dict[str, Stage], markers: dict[str, Done | None], decided: dict[str, tuple[Action, str]]
) -> None:
    for name, (action, _) in decided.items():
        for need in dag.ancestors(stages, name) if action == "run" else []:
            done = markers[need]
            if decided[need][0] == "leave" and (done is None or done.fingerprint != stages[need].fingerprint):
                raise NeedsMissing(
                    f"{name} needs {need}, which is not done with these settings", where=str(run.stage(need)),
                    do=f"run {need} too",
                )  # fmt: skip


def _plan_stage(
    recipe: Recipe, run: RunDir, cluster: ClusterFile, stage: Stage, action: Action, reason: str
) -> StagePlan:
    resources = recipe.resources[stage.name]
    script = stage_script(recipe, run.name, stage.name, memory=cluster.memory == "mem")
    batch = None
    if KINDS[stage.kind].makes == "model":
        own = recipe.own(stage.name)
        world = resources.nodes * (resources.processes or max(1, resources.gpus))
        batch = derive(own.global_batch_size, world, own.micro_batch_size, f"{stage.name} of recipe {recipe.name}")
    flags = (*sbatch_flags(cluster, resources), *time_flags(cluster, resources))
    return StagePlan(stage, action, reason, script, flags, batch)


def active_stages(states: Sequence[tuple[str, str]]) -> list[str]:
    """Names of the stages that are queued, waiting or running, from (name, state) pairs."""
    return [name for name, state in states if state in ("queued", "waiting", "running")]
