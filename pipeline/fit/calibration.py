"""Learns from the peaks that runs recorded: how far predictions were off, per GPU and versions."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError, UserError
from pipeline.fit.cards import Card, known_card
from pipeline.fit.memory import Correction
from pipeline.fit.predict import Predictor, Setting
from pipeline.fit.tracer import Tracer
from pipeline.fit.workload import work_of
from pipeline.recipe import Recipe
from pipeline.records import read_json, write_json
from pipeline.run import RunDir, known_runs
from pipeline.training.peaks import versions

MACHINE = "gpu"
"""Key of the line of metrics.jsonl that says on what a stage trains; the callback in pipeline/training writes it."""


@dataclass(frozen=True)
class Observation:
    """One training stage's recorded peak beside the prediction for the same step."""

    run: str
    stage: str
    gpu: str
    versions: dict[str, str]
    predicted: float
    """Bytes, without any correction."""
    allocated: float
    reserved: float

    @property
    def error(self) -> float:
        """Predicted over observed, minus one."""
        return self.predicted / self.allocated - 1


def observe(root: Path, tracer: Tracer) -> list[Observation]:
    """All recorded peaks under a root with what is predicted for them; written beside the traces."""
    found = [each for name in known_runs(root) for each in _of_run(RunDir(root, name), tracer)]
    if found:
        write_json(tracer.folder / "observations.json", [asdict(each) for each in found])
    return found


def read_observations(folder: Path) -> list[Observation]:
    """What `observe` wrote last."""
    return [Observation(**each) for each in read_json(folder / "observations.json") or []]


def _of_run(run: RunDir, tracer: Tracer) -> Iterator[Observation]:
    try:
        recipe, _ = run.read_resolved()
    except PipelineError:  # written by another version of the project
        return
    for stage in recipe.training_stages():
        machine, allocated, reserved = _recorded(run.read_metrics(stage))
        if not machine or not allocated or machine["versions"] != versions():
            continue
        try:
            predicted = _predicted(recipe, run, stage, machine, tracer)
        except UserError:  # a model of unknown dimensions
            continue
        yield Observation(run.name, stage, machine[MACHINE], machine["versions"], predicted, allocated, reserved)


def _recorded(lines: list[dict[str, Any]]) -> tuple[dict[str, Any], float, float]:
    """(the machine's line, highest allocated, highest reserved bytes) of a stage's metrics."""
    machine: dict[str, Any] = next((line for line in reversed(lines) if MACHINE in line), {})
    allocated = max((float(line.get("peak_allocated", 0.0)) for line in lines), default=0.0)
    return machine, allocated, max((float(line.get("peak_reserved", 0.0)) for line in lines), default=0.0)


def _predicted(recipe: Recipe, run: RunDir, stage: str, machine: dict[str, Any], tracer: Tracer) -> float:
    work = work_of(recipe, run, stage, int(machine["processes"]))
    setting = Setting(int(machine["micro"]), work.batch(int(machine["micro"])).accumulation, machine["checkpointing"])
    return Predictor(tracer, known_card(machine[MACHINE])).stage(recipe, work, setting).allocated


def correction(observations: list[Observation], card: Card | None) -> Correction:
    """What to correct predictions for a card by: the highest that its runs with these versions have shown."""
    mine = [
        each
        for each in observations
        if card is not None and known_card(each.gpu) == card and each.versions == versions()
    ]
    if not mine:
        return Correction()
    ratios = [each.allocated / each.predicted for each in mine]
    return Correction(max(ratios), max(each.reserved / each.allocated - 1 for each in mine), len(mine))


def own_error(observations: list[Observation]) -> dict[str, float]:
    """Number of observations, median and largest absolute relative error of predictions before correction."""
    errors = [abs(each.error) for each in observations]
    if not errors:
        return {"runs": 0}
    return {"runs": len(errors), "median": statistics.median(errors), "largest": max(errors)}
