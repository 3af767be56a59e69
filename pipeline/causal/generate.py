"""Rows: a random labelled equivalence class, a random hypothesis about it, and the exact label."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Literal

import numpy as np
import numpy.typing as npt

from pipeline.causal.equivalence import EquivalenceClass
from pipeline.causal.graphs import pairs
from pipeline.causal.relations import Hypothesis, Relation, certain
from pipeline.causal.splits import Split, classes_of
from pipeline.causal.text import ANSWERS, WORDINGS, join, letters, template, write_hypothesis, write_premise, write_row
from pipeline.errors import UserError

Balance = Literal["natural", "label"]
"""`natural`: every hypothesis of every labelled class is equally likely. `label`: half yes, half no."""


@dataclass(frozen=True)
class Row:
    """One generated row."""

    premise: str
    hypothesis: str
    label: int
    """1 when the hypothesis holds in every DAG that fits the premise, else 0."""
    num_variables: int
    template: str
    """The released name of the hypothesis wording."""
    mec: str
    """The equivalence class up to renaming, such as `5:62`."""

    @property
    def input(self) -> str:
        """The released input text."""
        return write_row(self.premise, self.hypothesis)


def hypotheses(n: int) -> tuple[Hypothesis, ...]:
    """All hypotheses about n variables: direct and indirect causes both ways, colliders and confounders once."""
    return tuple(
        Hypothesis(relation, *pair)
        for x, y in pairs(n)
        for relation in Relation
        for pair in (((x, y), (y, x)) if relation <= Relation.INDIRECT else ((x, y),))
    )


@dataclass(frozen=True)
class _Table:
    """Every (class, hypothesis) of a split on n variables: entry i is class i // h, hypothesis i % h of h."""

    classes: tuple[EquivalenceClass, ...]
    hypotheses: tuple[Hypothesis, ...]
    labels: npt.NDArray[np.bool_]
    weights: npt.NDArray[np.float64]
    """How many labelled classes each entry stands for."""

    def chances(self, wanted: int | None) -> npt.NDArray[np.float64]:
        """Cumulative weights of the entries with the wanted label (any, when None)."""
        chances: npt.NDArray[np.float64] = np.cumsum(self.weights * (wanted is None or self.labels == wanted))
        return chances


@lru_cache(maxsize=None)
def _table(split: Split, n: int) -> _Table:
    chosen, asked = classes_of(split, n), hypotheses(n)
    labels = [certain(each.cpdag)[h.relation, h.x, h.y] for each in chosen for h in asked]
    weights = [float(each.size) for each in chosen for _ in asked]
    return _Table(chosen, asked, np.array(labels, dtype=np.bool_), np.array(weights))


@lru_cache(maxsize=1 << 15)
def _premise(each: EquivalenceClass, labels: tuple[int, ...]) -> str:
    renamed = (
        (*sorted((labels[x], labels[y])), tuple(sorted(labels[z] for z in given))) for x, y, given in each.independences()
    )
    return write_premise(sorted(renamed), letters(each.num_variables))  # type: ignore[arg-type]


def _row(table: _Table, entry: int, rng: np.random.Generator) -> Row:
    each = table.classes[entry // len(table.hypotheses)]
    asked = table.hypotheses[entry % len(table.hypotheses)]
    n = each.num_variables
    labels = tuple(int(label) for label in rng.permutation(n))
    x, y = labels[asked.x], labels[asked.y]
    if asked.relation > Relation.INDIRECT:
        x, y = sorted((x, y))
    phrase = int(rng.integers(len(WORDINGS[asked.relation])))
    text = write_hypothesis(Hypothesis(asked.relation, x, y), letters(n), phrase)
    return Row(_premise(each, labels), text, int(table.labels[entry]), n, template(text), each.name)


def stream(
    split: Split, num_variables: Sequence[int], rng: np.random.Generator, balance: Balance = "natural"
) -> Iterator[Row]:
    """Rows without end, drawn with replacement; every number of variables that has the wanted label is equally likely.

    The letters are random, so that their order says nothing of the causes. Raises UserError when the split has no
    row of a wanted label.
    """
    sources: list[list[tuple[_Table, npt.NDArray[np.float64]]]] = []
    for wanted in (None,) if balance == "natural" else (0, 1):
        tables = [(table, table.chances(wanted)) for table in (_table(split, n) for n in num_variables) if table.classes]
        sources.append([(table, chances) for table, chances in tables if chances[-1] > 0])
        if not sources[-1]:
            raise UserError(
                f"the {split} set on these numbers of variables has no such row",
                value=(*num_variables, "any label" if wanted is None else ANSWERS[wanted]), do="use more variables",
            )  # fmt: skip
    while True:
        source = sources[int(rng.integers(len(sources)))]
        table, chances = source[int(rng.integers(len(source)))]
        yield _row(table, int(np.searchsorted(chances, rng.random() * chances[-1], side="right")), rng)


def sample(
    split: Split, num_variables: Sequence[int], count: int, seed: int, balance: Balance = "natural", unique: bool = False
) -> list[Row]:
    """The first `count` rows of a stream; with `unique`, no input text twice, and label balance kept as drawn.

    Raises UserError when the split has too few different rows.
    """
    rows = stream(split, num_variables, np.random.default_rng(seed), balance)
    if not unique:
        return list(islice(rows, count))
    if count > (there := available(split, num_variables)) // 2:
        raise UserError(
            f"{count} different rows asked for, at most half of all can be drawn; {split} has", value=there,
            where=f"{join([str(n) for n in num_variables])} variables", do="ask for fewer rows or more variables",
        )  # fmt: skip
    found: dict[str, Row] = {}
    while len(found) < count:
        row = next(rows)
        found.setdefault(row.input, row)
    return list(found.values())


def available(split: Split, num_variables: Sequence[int]) -> int:
    """How many different hypotheses about labelled classes the split has (the wordings of one are counted once)."""
    return int(sum(_table(split, n).weights.sum() for n in set(num_variables)))
