"""The questions of every part of a run: training stages, dev and test; no question of a held-out part is learned."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from pipeline.errors import UserError
from pipeline.question_recipe import task_of
from pipeline.recipe import Recipe
from pipeline.tasks.example import Example, completion_text, prompt_text
from pipeline.tasks.names import TASKS
from pipeline.tasks.published import Origin, origin, rows_of

DEV_ROWS = 256
HELD_OUT = 10
"""Where one file, or one split, is all there is for training and test: one row of so many is for the test."""


@dataclass(frozen=True)
class Question:
    """One row of a part."""

    task: str
    template: str
    number: int
    """Its place in its file or split, from 0."""
    row: dict[str, Any]
    """As published."""

    @property
    def example(self) -> Example:
        """What it asks and how it is answered."""
        return TASKS[self.task].example(self.row)

    @property
    def message(self) -> str:
        """The user message."""
        return prompt_text(self.example, self.template)

    @property
    def completion(self) -> str | None:
        """What SFT teaches; None where the row has no solution."""
        return completion_text(self.example, self.template)


@dataclass
class Questions:
    """Questions by part, and what was left out on the way, by reason."""

    rows: dict[str, list[Question]] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def leave_out(self, reason: str, count: int) -> None:
        """Count rows that are not used."""
        if count:
            self.left_out[reason] = self.left_out.get(reason, 0) + count


def load_questions(recipe: Recipe) -> Questions:
    """The questions of every part: test first, then dev, then the training stages, each without those before it.

    Where training and test have the same rows, a tenth of them, chosen by the seed, is the test's. Raises UserErrors
    for a source that is missing or broken, UserError where no row is left for a part.
    """
    found, training = Questions(), recipe.training_stages()
    origins = {name: origin(recipe, name) for name in ["test", *training]}
    asked = recipe.data.parts.get("dev")
    origins["dev"] = origin(recipe, "dev" if asked or not training else training[-1])
    divided = {where for name, where in origins.items() if name != "test"} & {origins["test"]}
    forbidden: set[str] = set()
    for index, name in enumerate(["test", "dev", *training]):
        pool = _pool(origins[name], found, recipe, name, divided)
        kept = [each for each in pool if name == "test" or _key(each) not in forbidden]
        found.leave_out(f"{name}: the question stands in a held-out set", len(pool) - len(kept))
        rng = np.random.default_rng([recipe.seed, index])
        chosen = [kept[i] for i in rng.permutation(len(kept))][: _count(recipe, name, len(kept))]
        if not chosen:
            source = origins[name].source
            raise UserError(f"no rows are left for {name}", value=found.left_out, where=f"data, {source}",
                            do="give it rows of its own: data.parts")  # fmt: skip
        found.rows[name] = chosen
        if name in ("test", "dev"):
            forbidden |= {_key(each) for each in chosen}
    return found


def _count(recipe: Recipe, name: str, there: int) -> int | None:
    if name in recipe.data.rows:
        return recipe.data.rows[name]
    if name == "dev":
        return min(DEV_ROWS, max(1, there // HELD_OUT))
    return None if name == "test" else recipe.data.max_samples


def _pool(where: Origin, found: Questions, recipe: Recipe, name: str, divided: Iterable[Origin]) -> list[Question]:
    """All rows that a part may have."""
    rows = _cached_rows(where)
    if where in divided:
        places = np.random.default_rng(recipe.seed).permutation(len(rows))
        held = set(places[: max(1, len(rows) // HELD_OUT)].tolist())
        rows = [row for place, row in enumerate(rows) if (place in held) == (name == "test")]
    part, task = recipe.data.parts.get(name), task_of(recipe, name)
    task = where.task if name == "dev" else task
    template = (part.template if part else None) or recipe.data.template or TASKS[task].TEMPLATE
    return [Question(task, template, number, row) for number, row in rows]


@lru_cache(maxsize=4)
def _cached_rows(where: Origin) -> list[tuple[int, dict[str, Any]]]:
    return rows_of(where)


def _key(question: Question) -> str:
    """A question's text without its spaces and capitals: the same question however it is set."""
    return "".join(question.example.question.lower().split())
