"""What a recipe says of tasks whose rows are published questions, and whether its parts go together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.errors import UserError
from pipeline.recipe import Recipe
from pipeline.recipe_evaluate import YES_NO_ONLY
from pipeline.recipe_questions import GRADED, SOURCES, Reward


def task_of(recipe: Recipe, name: str) -> str:
    """The task of a part of a run (a training stage, dev, test)."""
    part = recipe.data.parts.get(name)
    return (part.task if part else None) or recipe.task


@dataclass(frozen=True)
class Source:
    """Where the rows of a part come from, and the key of the recipe that says so."""

    name: str
    """As `data.source`: a file, a folder, `generated`, or a hub id, after a colon its configuration."""
    revision: str | None
    key: str


def source_of(recipe: Recipe, name: str) -> Source:
    """The source of a part of a run (a training stage, dev, test): its own, or that of the recipe or of its task."""
    part, task = recipe.data.parts.get(name), task_of(recipe, name)
    if part is None or (part.source is None and task == recipe.task):
        return Source(recipe.data.source, recipe.data.revision, "data.source")
    return Source(part.source or SOURCES[task], part.revision, f"data.parts.{name}")


def sources(recipe: Recipe) -> list[Source]:
    """Every source that the run reads, once each."""
    parts = ["test", *recipe.training_stages(), *({"dev"} & recipe.data.parts.keys())]
    return list(dict.fromkeys(source_of(recipe, name) for name in parts))


def reward_of(recipe: Recipe, stage: str) -> Reward:
    """The reward of a stage of rollouts: what its section says, else the one of its task."""
    own: Reward | None = recipe.own(stage).reward
    return own or Reward.model_validate({"type": GRADED[task_of(recipe, stage)]})


def check_questions(
    recipe: Recipe, sections: Mapping[str, Mapping[str, Any]], kinds: Mapping[str, str]
) -> list[UserError]:
    """What does not go together: keys of one task in a recipe of another, rewards that cannot be given, unknown parts.

    `sections` and `kinds` are by stage name.
    """
    ours = recipe.task != "corr2cause"
    foreign = recipe.data.keys_of_other_tasks(ours)
    errors = [_wrong(f"data.{key} is not for the task", recipe.task, "data", "take it out") for key in foreign]
    for name in recipe.data.parts:
        if name not in (*kinds, "dev", "test"):
            errors.append(
                _wrong("data.parts for an unknown stage", name, "data.parts", f"one of {', '.join(kinds)}, dev, test")
            )
    for name, kind in kinds.items():
        if kind == "evaluate" and ours:
            asked = [
                key for key in YES_NO_ONLY if sections[name].get(key) not in (None, [], "generate", "transformers")
            ]
            errors += [_wrong(f"{name}.{key} is not for the task", recipe.task, name, "take it out") for key in asked]
        if kind == "dpo" and ours and sections[name].get("pairs") is None:
            errors += _check_reward(recipe, name, None)
        if kind not in ("grpo", "ppo"):
            continue
        unused = "rewards" if ours else "reward"
        if unused in sections[name] and sections[name][unused] is not None:
            other = "reward" if ours else "rewards"
            errors.append(_wrong(f"{name}.{unused} is not for the task", recipe.task, name, f"use {other}"))
        if ours:
            errors += _check_reward(recipe, name, sections[name].get("reward"))
    return errors


def _check_reward(recipe: Recipe, name: str, section: Any) -> list[UserError]:
    task = task_of(recipe, name)
    graded = GRADED.get(task)
    if graded is None:
        known = ", ".join(GRADED)
        return [_wrong("no answer can be graded in rows of", task, name, f"give data.parts.{name}.task one of {known}")]
    if not isinstance(section, dict):
        return []
    types = [section.get("type"), *(part.get("type") for part in section.get("parts") or [] if isinstance(part, dict))]
    return [
        _wrong(f"{name}.reward type cannot grade rows of {task}", each, name, f"use {graded}")
        for each in types
        if each in GRADED.values() and each != graded
    ]


def _wrong(what: str, value: object, where: str, do: str) -> UserError:
    return UserError(what, value=value, where=where, do=do)
