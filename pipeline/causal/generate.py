"""Rows: a random labelled equivalence class, a random hypothesis about it, and the exact label."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt

from pipeline.causal.classes import MOST
from pipeline.causal.implied import implied
from pipeline.causal.relations import Hypothesis, Relation, hypotheses
from pipeline.causal.sources import Dags, Source, sources
from pipeline.causal.splits import Split
from pipeline.causal.text import last_letters, letters, template, write_hypothesis, write_premise, write_row
from pipeline.causal.wording import COMPACT, PARAPHRASED, RELEASED, Wording
from pipeline.errors import UserError

Balance = Literal["natural", "label", "template"]
"""`natural`: every hypothesis of every labelled class is equally likely. `label`: half yes, half no, each relation as
often. `template`: half yes, half no, each template as often."""


@dataclass(frozen=True)
class Style:
    """How rows are worded."""

    relabel: bool = True
    """Random letters; else a later letter never causes an earlier one, as in the released files."""
    paraphrase: bool = False
    """Premise and hypothesis each in the released wording or in a paraphrase, at random; the two variables of a
    collider or confounder in either order, as in the first edition and its perturbed sets. Else the first letter
    comes first, as in the second edition."""
    refactorize: float = 0.0
    """Share of the rows whose variables are Z, Y, X, ... as in the refactorized set; not where `wording` has names."""
    wording: Wording | None = None
    """Another wording for both."""


DAGS, STYLE = Dags(), Style()


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


Cell = tuple[int | None, Relation | None]
"""Wanted label and relation; None is any."""


def _cells(balance: Balance) -> list[list[Cell]]:
    """What is drawn in turn: a list for each label that is as likely as the other, and in it cells as likely."""
    if balance == "natural":
        return [[(None, None)]]
    two_templates = (Relation.DIRECT, Relation.INDIRECT) if balance == "template" else ()
    return [[(label, each) for each in (*Relation, *two_templates)] for label in (0, 1)]


@dataclass(frozen=True)
class _Table:
    """Every (class, hypothesis) of a split on n variables: entry i is class i // h, hypothesis i % h of h."""

    sources: tuple[Source, ...]
    hypotheses: tuple[Hypothesis, ...]
    labels: npt.NDArray[np.int8]
    """-1 for a hypothesis that bounded search did not settle."""
    weights: npt.NDArray[np.float64]
    """How likely each entry is by nature."""
    sizes: npt.NDArray[np.float64]
    """How many labelled classes each entry stands for."""

    def chances(self, cell: Cell) -> npt.NDArray[np.float64]:
        """Cumulative weights of the entries of a cell."""
        label, relation = cell
        fits = self.labels >= 0 if label is None else self.labels == label
        if relation is not None:
            fits = fits & np.array([each.relation is relation for each in self.hypotheses] * len(self.sources))
        chances: npt.NDArray[np.float64] = np.cumsum(self.weights * fits)
        return chances


@cache
def _table(split: Split, n: int, dags: Dags) -> _Table:
    chosen, asked = sources(split, n, dags), hypotheses(n)
    number = {"valid": 1, "invalid": 0, "undecided": -1}
    labels = [number[found.answer(h)] for each in chosen for found in [implied(each.cpdag)] for h in asked]
    weights = [each.weight for each in chosen for _ in asked]
    sizes = [float(each.size) for each in chosen for _ in asked]
    return _Table(chosen, asked, np.array(labels, dtype=np.int8), np.array(weights), np.array(sizes))


@lru_cache(maxsize=1 << 15)
def _premise(each: Source, labels: tuple[int, ...], wording: Wording, names: tuple[str, ...]) -> str:
    renamed = []
    for x, y, given in each.stated:
        x, y = sorted((labels[x], labels[y]))
        renamed.append((x, y, tuple(sorted(labels[z] for z in given))))
    return write_premise(sorted(renamed), names, wording)


def _row(table: _Table, entry: int, style: Style, rng: np.random.Generator) -> Row:
    each = table.sources[entry // len(table.hypotheses)]
    asked = table.hypotheses[entry % len(table.hypotheses)]
    n = len(each.cpdag)
    labels = tuple(int(label) for label in rng.permutation(n)) if style.relabel else tuple(range(n))
    x, y = labels[asked.x], labels[asked.y]
    if asked.relation > Relation.INDIRECT:
        x, y = sorted((x, y))
        if style.paraphrase and rng.integers(2):
            x, y = y, x
    told, said = _wordings(style, n, rng)
    names = _names(style, n, rng)
    phrase = int(rng.integers(len(said.hypotheses[asked.relation])))
    meant = Hypothesis(asked.relation, x, y)
    text = write_hypothesis(meant, names, phrase, said)
    two_phrases = asked.relation is Relation.INDIRECT
    plain = write_hypothesis(meant, letters(n), phrase if said is RELEASED else int(two_phrases and x > y))
    kind = template(plain)  # of another wording: what its meaning is called in the first edition
    return Row(_premise(each, labels, told, names), text, int(table.labels[entry]), n, kind, each.name)


def _names(style: Style, n: int, rng: np.random.Generator) -> tuple[str, ...]:
    if style.wording and style.wording.names:
        return style.wording.names[:n]
    return last_letters(n) if style.refactorize and rng.random() < style.refactorize else letters(n)


def _wordings(style: Style, n: int, rng: np.random.Generator) -> tuple[Wording, Wording]:
    """The wording of the premise and that of the hypothesis."""
    if style.wording is not None:
        return style.wording, style.wording
    told, said = RELEASED, RELEASED
    if style.paraphrase:
        told, said = ((RELEASED, PARAPHRASED)[int(rng.integers(2))] for _ in range(2))
    return (told if n <= MOST else COMPACT), said


def stream(
    split: Split,
    num_variables: Sequence[int],
    rng: np.random.Generator,
    balance: Balance = "natural",
    dags: Dags = DAGS,
    style: Style = STYLE,
) -> Iterator[Row]:
    """Rows without end, drawn with replacement; every number of variables that has a wanted row is equally likely.

    Raises UserError when the split has no row of a wanted label, or the wording too few names.
    """
    _check_names(style, max(num_variables, default=0))
    tables = [table for table in (_table(split, n, dags) for n in num_variables) if table.sources]
    drawn = [[each for cell in cells if (each := _having(tables, cell))] for cells in _cells(balance)]
    if not all(drawn):
        raise UserError(
            f"the {split} set has no row of a wanted label on these numbers of variables",
            value=list(num_variables), do="use more variables, or natural balance",
        )  # fmt: skip
    while True:
        cells = drawn[int(rng.integers(len(drawn)))]
        cell = cells[int(rng.integers(len(cells)))]
        table, chances = cell[int(rng.integers(len(cell)))]
        yield _row(table, int(np.searchsorted(chances, rng.random() * chances[-1], side="right")), style, rng)


def _having(tables: list[_Table], cell: Cell) -> list[tuple[_Table, npt.NDArray[np.float64]]]:
    """The tables that have entries of a cell, with their chances."""
    return [(table, chances) for table in tables for chances in [table.chances(cell)] if chances[-1] > 0]


def _check_names(style: Style, most: int) -> None:
    wording = style.wording
    if wording is not None and 0 < len(wording.names) < most:
        raise UserError(
            f"the wording {wording.name} has names for {len(wording.names)} variables", value=most,
            where="number of variables", do="add names to the wording, or ask for fewer variables",
        )  # fmt: skip
    if wording is not None and not wording.compact and most > MOST:
        raise UserError(
            f"the wording {wording.name} lists every independence, which is for up to {MOST} variables", value=most,
            where="number of variables", do="leave `correlated` empty: the wording is then compact",
        )  # fmt: skip


def sample(
    split: Split,
    num_variables: Sequence[int],
    count: int,
    seed: int,
    balance: Balance = "natural",
    dags: Dags = DAGS,
    style: Style = STYLE,
) -> list[Row]:
    """Rows of a stream, no input text twice; unless the balance is natural `count // 2` of them are yes.

    Raises UserError when the split has too few different rows.
    """
    quota = [count, count] if balance == "natural" else [count - count // 2, count // 2]
    there = available(split, num_variables, dags, style)
    if sum(map(min, quota, there)) < count:
        raise UserError(
            f"asked for {count} different rows ({balance} balance); no and yes rows that the {split} set has",
            value=list(there), do="ask for fewer rows, more variables or more premises",
        )  # fmt: skip
    found: dict[str, Row] = {}
    rows = stream(split, num_variables, np.random.default_rng(seed), balance, dags, style)
    while len(found) < count:
        row = next(rows)
        if row.input not in found and quota[row.label]:
            quota[row.label] -= 1
            found[row.input] = row
    return list(found.values())


def available(split: Split, num_variables: Sequence[int], dags: Dags = DAGS, style: Style = STYLE) -> tuple[int, int]:
    """How many (no, yes) hypotheses about labelled classes a split has; two wordings of one are counted once."""
    counted = [0, 0]
    for n in sorted(set(num_variables)):
        table = _table(split, n, dags)
        for label in (0, 1):
            fits = table.labels == label
            counted[label] += int(table.sizes[fits].sum()) if style.relabel else int(np.count_nonzero(fits))
    return counted[0], counted[1]
