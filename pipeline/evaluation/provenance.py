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


def attempts(run: RunDir, recipe: Recipe) -> list[Attempt]:
    """Every attempt at every stage, in the order of the stages.

    The record of a stage is of its last attempt; of those before it the last line of their log is all there is.
    """
    found = []
    for entry in recipe.stages:
        state = run.state(entry.name)
        last = int(state.get("attempt") or 0)
        for number in range(1, last):
            cause = last_line(run, entry.name, number)
            found.append(Attempt(entry.name, number, "did not finish", cause, "", "", "", ""))
        told, *others = (str(state.get(key) or "") for key in ("state", "reason", "job", "host", "started", "ended"))
        found.append(Attempt(entry.name, last, told or "not started", *others))
    return found


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
