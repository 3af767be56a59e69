"""Further test sets, made on the spot by the causal engine: the published test in its versions, new rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.causal.enumeration import EXACT, RELEASED
from pipeline.causal.files import Choice, Config, texts
from pipeline.causal.generate import Row, Style, available, sample
from pipeline.causal.released import ENTAILED, Labels, Version, splits, verdicts
from pipeline.causal.sources import Dags
from pipeline.recipe_evaluate import variables_of
from pipeline.tasks.rows import read, relabelled

PUBLISHED: dict[str, tuple[Version, Config, Labels]] = {
    "released-v2": ("v2", "default", "released"),
    "released-v1": ("v1", "default", "released"),
    "corrected": ("v2", "default", "corrected"),
    "paraphrased": ("v1", "perturbation_by_paraphrasing", "released"),
    "refactorized": ("v1", "perturbation_by_refactorization", "released"),
    "relabelled": ("v2", "default", "released"),
}
"""Edition, wording and labels. `corrected` has the rows of released-v2 with right labels, `relabelled` the same with
their released labels and random letters; the other two are those of the paper's tables on robustness."""
PREMISES = 100
"""Different equivalence classes that a set of new rows above six variables is about."""


@dataclass(frozen=True)
class NamedSet:
    """The rows of a test set, and how many more were left out because training had their class."""

    rows: list[Row]
    left_out: int


def named_set(name: str, count: int, trained: frozenset[str], seed: int, most: int | None = None) -> NamedSet:
    """The test set of this name without rows of the classes in `trained`, under whatever renaming.

    `count` and `seed` are for sets of new rows; the published ones have all their rows with at most `most` variables,
    always the same.
    """
    n = variables_of(name)
    rows = published_rows(name) if n is None else new_rows(n, count, seed)
    rows = rows if n or most is None else [row for row in rows if row.num_variables <= most]
    kept = [row for row in rows if row.mec not in trained]
    return NamedSet(kept, len(rows) - len(kept))


def published_rows(name: str) -> list[Row]:
    """The rows of a published test set, in the published order."""
    version, config, labels = PUBLISHED[name]
    test = splits(version, labels, 6)["test"]
    valid = (verdicts(test, RELEASED if labels == "released" else EXACT) == ENTAILED).astype(int)
    found = []
    for text, label, _, template in texts(test, valid, Choice(version, 6, labels, config), "test"):
        row = read(text, label)
        found.append(Row(row.premise, row.hypothesis, label, row.num_variables, template, row.mec))
    if name == "relabelled":
        rng = np.random.default_rng(0)
        return [relabelled(row, rng) for row in found]
    return found


def new_rows(n: int, count: int, seed: int) -> list[Row]:
    """Rows on n variables of test classes, with random letters; fewer than `count` where there are not so many."""
    dags, style = Dags(premises=PREMISES), Style()
    there = sum(available("test", [n], dags, style))
    return sample("test", [n], min(count, there), seed, "natural", dags, style)
