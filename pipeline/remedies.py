"""What is changed by itself after a failure that is nobody's mistake: recorded, shown, and part of the recipe since.

A remedy is an override of the recipe. It holds for as long as the recipe's own value is the one that it replaced, so
that whoever sets another value has their way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.recipe import KINDS, Recipe

MEMORY_FACTOR = 1.5


@dataclass(frozen=True)
class Remedy:
    """One change: after which attempt and failure, which key, from what to what."""

    stage: str
    attempt: int
    failure: str
    evidence: str
    key: str
    before: Any
    after: Any

    @property
    def same_job(self) -> bool:
        """Whether the job that failed can go on with it; else Slurm must give something else."""
        return not self.key.endswith((".memory", ".exclude"))

    def told(self) -> str:
        """In a line."""
        return f"after attempt {self.attempt} ({self.failure}): {self.key} {self.before} -> {self.after}"

    def as_dict(self) -> dict[str, Any]:
        """For the records."""
        return asdict(self)


def propose(
    recipe: Recipe, stage: str, attempt: int, failure: str, evidence: str, node: str, before: Sequence[Remedy]
) -> Remedy | None:
    """The change after a failure; None when the recipe's `remedies` are used up or nothing is left to change.

    `failure` is a kind of pipeline.training.failures, `node` where it happened, `before` the remedies of this stage.
    """
    resources = recipe.resources[stage]
    if len(before) >= resources.remedies:
        return None
    value: Any
    match failure:
        case "GPU memory":
            key = "micro_batch_size" if KINDS[recipe.stage(stage).kind].makes == "model" else "batch_size"
            value = getattr(recipe.own(stage), key, 1)
            changed, key = (value // 2 if value > 1 else value), f"{stage}.{key}"
        case "memory":
            key, value = f"resources.{stage}.memory", resources.memory
            changed = more_memory(value)
        case "node":
            key, value = f"resources.{stage}.exclude", list(resources.exclude)
            changed = sorted({*value, node} - {""})
        case _:
            key, value, changed = f"resources.{stage}.debug", resources.debug, True
    return None if changed == value else Remedy(stage, attempt, failure, evidence, key, value, changed)


def more_memory(memory: str) -> str:
    """Half as much again, in the same unit, rounded up: 8G -> 12G."""
    number, unit = int(memory[:-1]), memory[-1]
    return f"{-int(-number * MEMORY_FACTOR // 1)}{unit}"


def apply(recipe: Recipe, remedies: Sequence[Remedy]) -> Recipe:
    """The recipe with those remedies that still fit it."""
    for each in remedies:
        section, _, key = each.key.rpartition(".")
        name = each.stage
        if section == f"resources.{name}" and getattr(recipe.resources[name], key) == each.before:
            changed = recipe.resources[name].model_copy(update={key: each.after})
            recipe = recipe.model_copy(update={"resources": {**recipe.resources, name: changed}})
        elif section == name and getattr(recipe.own(name), key) == each.before:
            sections = {**recipe.sections, name: {**recipe.sections.get(name, {}), key: each.after}}
            recipe = recipe.model_copy(update={"sections": sections})
    return recipe
