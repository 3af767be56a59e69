"""Where a result comes from and what it cost, from the records of the run."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.errors import UserError
from pipeline.evaluation.predictions import Predictions
from pipeline.load import dump_recipe, load_recipe, recipe_file
from pipeline.recipe import Recipe
from pipeline.records import read_json
from pipeline.run import HOME, RunDir

GPU_PEAK = "peak_gpu_memory_gb"
TOKENS = ("num_tokens", "num_input_tokens_seen")
"""What the trainers call the tokens that they have worked through."""


@dataclass(frozen=True)
class StageCost:
    """What one stage took; None is not known. Times are of the last attempt, in hours."""

    stage: str
    hours: float | None
    gpus: int
    waited: float | None
    """From its submission to its start."""
    tokens: int | None
    """Worked through in training, or written in evaluation."""
    megabytes: float | None
    """Size of its outputs."""
    peak: float | None
    """GB of main memory of its largest process, at most."""
    gpu_peak: float | None
    """GB of a GPU's memory, at most; known of evaluation only."""

    @property
    def gpu_hours(self) -> float | None:
        """GPUs that were asked for, times hours."""
        return None if self.hours is None else self.hours * self.gpus


def costs(run: RunDir, recipe: Recipe, found: Mapping[str, Predictions]) -> list[StageCost]:
    """The cost of every stage of the recipe."""
    return [_cost(run, recipe, entry.name, entry.kind, found) for entry in recipe.stages]


def _cost(run: RunDir, recipe: Recipe, stage: str, kind: str, found: Mapping[str, Predictions]) -> StageCost:
    state, done, resources = run.state(stage), run.done(stage), recipe.resources[stage]
    seen = [line[key] for line in run.read_metrics(stage) for key in TOKENS if key in line]
    tokens = int(max(seen)) if seen else None
    if kind == "evaluate" and found:
        tokens = sum(row.tokens for each in found.values() for row in each.rows)
    return StageCost(
        stage=stage,
        hours=_between(state.get("started"), state.get("ended")),
        gpus=resources.gpus * resources.nodes,
        waited=_between(run.submission(stage).get("submitted"), state.get("started")),
        tokens=tokens,
        megabytes=sum(output.size for output in done.outputs) / 1e6 if done else None,
        peak=state.get("peak_memory_gb"),
        gpu_peak=max((line[GPU_PEAK] for line in run.read_metrics(stage) if GPU_PEAK in line), default=None),
    )


def _between(first: Any, last: Any) -> float | None:
    if not first or not last:
        return None
    begun, ended = datetime.datetime.fromisoformat(str(first)), datetime.datetime.fromisoformat(str(last))
    return max((ended - begun).total_seconds(), 0.0) / 3600


@dataclass(frozen=True)
class Attempt:
    """One try at a stage and how it ended."""

    stage: str
    number: int
    state: str
    cause: str
    job: str
    host: str
    started: str
    ended: str


ENDS = ("done", "failed", "interrupted", "cancelled")


def attempts(run: RunDir, recipe: Recipe) -> list[Attempt]:
    """Every attempt at every stage, in the order of the stages, as the run's timeline tells it.

    Of an attempt without an end in the timeline (killed, its node gone) the last line of its log is all there is. A
    stage that never began has one line.
    """
    events = run.events()
    found = []
    for entry in recipe.stages:
        told = _timeline([each for each in events if each["stage"] == entry.name])
        state = run.state(entry.name)
        last = int(state.get("attempt") or 0)
        if last:
            told[last] = {**told.get(last, {}), **state}
        for number in range(1, last):
            told.setdefault(number, {})
        for number in sorted(told) or [0]:
            found.append(_attempt(run, entry.name, number, told.get(number, state)))
    return found


def _timeline(events: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """The events of one stage as records of its attempts, by number."""
    found: dict[int, dict[str, Any]] = {}
    current = 0
    for event in events:
        if event["event"] == "running" and event.get("attempt"):
            current = int(event["attempt"])
            found[current] = {**event, "started": event["time"], "state": ""}
        elif event["event"] in ENDS and current:
            found[current] |= {**event, "state": event["event"], "ended": event["time"]}
    return found


def _attempt(run: RunDir, stage: str, number: int, told: Mapping[str, Any]) -> Attempt:
    state, cause, *others = (str(told.get(key) or "") for key in ("state", "reason", "job", "host", "started", "ended"))
    if number and not state:
        state, cause = "did not finish", last_line(run, stage, number)
    return Attempt(stage, number, state or "not started", cause, *others)


def last_line(run: RunDir, stage: str, attempt: int) -> str:
    """The last line of an attempt's log, at most 200 characters; empty where there is none."""
    path = run.attempt_log(stage, attempt)
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4096))
        told = [line for line in file.read().decode(errors="replace").split("\n") if line.strip()]
    return told[-1].strip()[-200:] if told else ""


def warnings(run: RunDir, recipe: Recipe) -> list[str]:
    """What the training health callback found, once each."""
    told: dict[str, str] = {}
    for stage in recipe.training_stages():
        for line in run.read_metrics(stage):
            if "health" in line:
                told.setdefault(f"{stage}: {line['health']}", f"from step {line.get('step')}")
    return [f"{what} ({when})" for what, when in told.items()]


def data_parts(run: RunDir, fingerprint: str) -> dict[str, dict[str, Any]]:
    """Rows, valid rows, classes and premises of every part of a processed data set; {} when it is gone."""
    summary = read_json(run.dataset(fingerprint) / "summary.json") if fingerprint else None
    parts: dict[str, dict[str, Any]] = (summary or {}).get("parts", {})
    return parts


def changed_settings(recipe: Recipe) -> dict[str, tuple[str, str]]:
    """Settings other than those of the recipe's file as it is now: key -> (there, here); {} when the file is gone."""
    try:
        there = flatten(dump_recipe(load_recipe(recipe_file(HOME, recipe.name))))
    except UserError:
        return {}
    here = flatten(dump_recipe(recipe))
    keys = sorted(there.keys() | here.keys())
    return {key: (there.get(key, ""), here.get(key, "")) for key in keys if there.get(key) != here.get(key)}


def flatten(tree: Any, prefix: str = "") -> dict[str, str]:
    """Leaves of a tree of settings as `section.key` -> text."""
    if isinstance(tree, dict) and tree:
        found: dict[str, str] = {}
        for key, value in tree.items():
            found |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
        return found
    return {prefix: str(tree)}
