"""Rows: a random labelled equivalence class, a random hypothesis about it, and the exact label."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt

from pipeline.causal.classes import EquivalenceClass
from pipeline.causal.dseparation import Independence
from pipeline.causal.implied import certain
from pipeline.causal.relations import Hypothesis, Relation, hypotheses
from pipeline.causal.splits import Split, classes_of
from pipeline.causal.text import WORDINGS, letters, template, write_hypothesis, write_premise, write_row
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


@cache
def _table(split: Split, n: int) -> _Table:
    chosen, asked = classes_of(split, n), hypotheses(n)
    labels = [certain(each.cpdag)[h.relation, h.x, h.y] for each in chosen for h in asked]
    weights = [float(each.size) for each in chosen for _ in asked]
    return _Table(chosen, asked, np.array(labels, dtype=np.bool_), np.array(weights))


@lru_cache(maxsize=1 << 15)
def _premise(each: EquivalenceClass, labels: tuple[int, ...]) -> str:
    renamed: list[Independence] = []
    for x, y, given in each.independences():
        x, y = sorted((labels[x], labels[y]))
        renamed.append((x, y, tuple(sorted(labels[z] for z in given))))
    return write_premise(sorted(renamed), letters(each.num_variables))


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
    tables = [table for table in (_table(split, n) for n in num_variables) if table.classes]
    sources: list[list[tuple[_Table, npt.NDArray[np.float64]]]] = []
    for wanted in (None,) if balance == "natural" else (0, 1):
        chances = [(table, table.chances(wanted)) for table in tables]
        sources.append([(table, each) for table, each in chances if each[-1] > 0])
        if not sources[-1]:
            raise UserError(
                f"the {split} set has no row of a wanted label on these numbers of variables",
                value=list(num_variables), do="use more variables, or natural balance",
            )  # fmt: skip
    while True:
        source = sources[int(rng.integers(len(sources)))]
        table, each = source[int(rng.integers(len(source)))]
        yield _row(table, int(np.searchsorted(each, rng.random() * each[-1], side="right")), rng)


def sample(
    split: Split, num_variables: Sequence[int], count: int, seed: int, balance: Balance = "natural"
) -> list[Row]:
    """Rows of a stream, no input text twice; with label balance `count // 2` of them are yes.

    Raises UserError when the split has too few different rows.
    """
    quota = [count, count] if balance == "natural" else [count - count // 2, count // 2]
    there = available(split, num_variables)
    if sum(map(min, quota, there)) < count:
        raise UserError(
            f"asked for {count} different rows ({balance} balance); no and yes rows that the {split} set has",
            value=list(there), do="ask for fewer rows or more variables",
        )  # fmt: skip
    found: dict[str, Row] = {}
    rows = stream(split, num_variables, np.random.default_rng(seed), balance)
    while len(found) < count:
        row = next(rows)
        if row.input not in found and quota[row.label]:
            quota[row.label] -= 1
            found[row.input] = row
    return list(found.values())


def available(split: Split, num_variables: Sequence[int]) -> tuple[int, int]:
    """How many (no, yes) hypotheses about labelled classes a split has; two wordings of one are counted once."""
    tables = [_table(split, n) for n in sorted(set(num_variables))]
    yes = sum(int(table.weights[table.labels].sum()) for table in tables)
    return sum(int(table.weights.sum()) for table in tables) - yes, yes
