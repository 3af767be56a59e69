"""The rows of the published data set in their order, with released or corrected labels, for both of its versions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from pipeline.causal import enumeration
from pipeline.causal.classes import MOST, classes, independences_of, shuffled
from pipeline.causal.dseparation import Independence
from pipeline.causal.enumeration import EXACT, Slips
from pipeline.causal.introsort import argsort
from pipeline.causal.relations import Hypothesis, Relation
from pipeline.causal.splits import Split, split_of
from pipeline.causal.text import Premise

Version = Literal["v1", "v2"]
Labels = Literal["released", "corrected", "clean"]
Ints = npt.NDArray[np.int64]

KINDS = ("parent", "non-parent ancestor", "child", "non-child descendant", "has_collider", "has_confounder")
"""What a row of the first edition says of an ordered pair (i, j), in the order of the rows."""
COLLIDER, CONFOUNDER = KINDS.index("has_collider"), KINDS.index("has_confounder")

MEANING = (
    (Relation.DIRECT, False),
    (Relation.INDIRECT, False),
    (Relation.DIRECT, True),
    (Relation.INDIRECT, True),
    (Relation.COLLIDER, False),
    (Relation.CONFOUNDER, False),
)
"""For each kind: its relation, and whether j is the cause."""

NEUTRAL, ENTAILED, CONTRADICTED = 0, 1, 2


@dataclass(frozen=True)
class Rows:
    """Rows as columns, each of shape (rows,)."""

    n: Ints
    """Number of variables."""
    unique: Ints
    """The DAG, by its index among the unique ones, whose letters the premise has."""
    i: Ints
    j: Ints
    kind: Ints
    """Index into KINDS."""

    def take(self, which: Ints | npt.NDArray[np.bool_]) -> Rows:
        """The rows at these places."""
        return Rows(*(column[which] for column in self._columns()))

    def _columns(self) -> tuple[Ints, ...]:
        return (self.n, self.unique, self.i, self.j, self.kind)

    def __len__(self) -> int:
        return len(self.n)

    def meaning(self) -> Ints:
        """One number for each premise, relation, cause and effect: rows that say the same have the same."""
        relation = np.array([int(relation) for relation, _ in MEANING])[self.kind]
        turned = np.array([turned for _, turned in MEANING])[self.kind]
        cause, effect = np.where(turned, self.j, self.i), np.where(turned, self.i, self.j)
        number: Ints = ((((self.n << 16) + self.unique) * 4 + relation) * 8 + cause) * 8 + effect
        return number


def joined(parts: list[Rows]) -> Rows:
    """The rows of all parts one after the other."""
    return Rows(*(np.concatenate(column) for column in zip(*(part._columns() for part in parts), strict=True)))


def _of_classes(n: int, unique: list[int]) -> Rows:
    """All ordered pairs and kinds for each class, in the order of the first edition."""
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
    block = np.array([(i, j, kind) for i, j in pairs for kind in range(len(KINDS))], dtype=np.int64)
    repeated = np.repeat(np.array(unique, dtype=np.int64), len(block))
    i, j, kind = np.tile(block, (len(unique), 1)).T
    return Rows(np.full(len(repeated), n, dtype=np.int64), repeated, i, j, kind)


def _first_edition(n: int) -> dict[Split, Rows]:
    """A tenth of the rows on n variables, at most 1000, is test, as many dev (a half each where all are few)."""
    listed = enumeration.equivalence_classes(n, released=True)
    rows = _of_classes(n, [listed[place].unique for place in shuffled(n, released=True)])
    total = len(rows)
    test = min(1000, total // 10) if total >= 1000 else total // 2
    dev = test if total >= 1000 else total - test
    places = np.arange(total)
    return {
        "test": rows.take(places < test),
        "dev": rows.take((places >= test) & (places < test + dev)),
        "train": rows.take(places >= test + dev),
    }


def _clean(n: int) -> dict[Split, Rows]:
    """Whole classes, each in the set that it belongs to under any renaming."""
    return {
        split: _of_classes(n, [each.unique for each in classes(n) if split_of(each.form) == split])
        for split in get_args(Split)
    }


def splits(version: Version, labels: Labels, most: int) -> dict[Split, Rows]:
    """Train, dev and test rows for 2 to `most` variables in the order of the files."""
    made = [_clean(n) if labels == "clean" else _first_edition(n) for n in range(2, most + 1)]
    edition: dict[Split, Rows] = {split: joined([each[split] for each in made]) for split in get_args(Split)}
    if version == "v1":
        return edition
    once = {split: _once(rows) for split, rows in edition.items()}
    others = np.concatenate([once["test"].meaning(), once["train"].meaning()])
    once["dev"] = once["dev"].take(~np.isin(once["dev"].meaning(), others))
    return {split: _arranged(rows) for split, rows in once.items()}


def _once(rows: Rows) -> Rows:
    """Symmetrical relations once a pair, every other statement where it stands first."""
    symmetrical = rows.kind >= COLLIDER
    first = np.zeros(len(rows), dtype=np.bool_)
    first[np.unique(rows.meaning(), return_index=True)[1]] = True
    return rows.take(np.where(symmetrical, rows.i < rows.j, first))


def _arranged(rows: Rows) -> Rows:
    """Colliders, confounders, the rest; then by number of variables as the released sort left equal ones."""
    group = np.select([rows.kind == COLLIDER, rows.kind == CONFOUNDER], [0, 1], 2)
    grouped = rows.take(np.argsort(group, kind="stable"))
    return grouped.take(np.array(argsort(grouped.n.tolist()), dtype=np.int64))


@cache
def _judged(n: int, slips: Slips) -> Ints:
    """Shape (U, 6, n, n): neutral, entailed or contradicted, for every listed DAG, kind and ordered pair (i, j)."""
    known = enumeration.classes_of_unique(n, slips.descendants)
    found = np.full((len(known), len(KINDS), n, n), -1, dtype=np.int64)
    listed = {each.unique for released in (True, False) for each in enumeration.equivalence_classes(n, released)}
    for unique in listed:
        count = enumeration.counts(n, known[unique], slips)
        verdict = np.select([count == len(known[unique].members), count == 0], [ENTAILED, CONTRADICTED], NEUTRAL)
        for kind, (relation, turned) in enumerate(MEANING):
            found[unique, kind] = verdict[relation].T if turned else verdict[relation]
    return found


@cache
def satisfiable(n: int) -> npt.NDArray[np.bool_]:
    """Shape (U,): whether the released premise of each unique DAG is one that some DAG satisfies.

    The released independences of a DAG are its own or one too many; then no DAG has them.
    """
    same = enumeration.independent(n, True) == enumeration.independent(n, False)
    every: npt.NDArray[np.bool_] = np.logical_and.reduce(same, axis=1)
    return every


def verdicts(rows: Rows, slips: Slips, *, clean: bool = False) -> Ints:
    """Neutral, entailed or contradicted for each row, with some of the slips of the released generator or none.

    Without the slip of the independences, a released premise that no DAG satisfies contradicts every hypothesis;
    `clean` says that the rows state the exact independences instead, which a DAG always satisfies.
    """
    found = np.empty(len(rows), dtype=np.int64)
    for n in np.unique(rows.n).tolist():
        own = np.flatnonzero(rows.n == n)
        part = rows.take(own)
        values = _judged(n, slips)[part.unique, part.kind, part.i, part.j]
        if not slips.descendants and not clean:
            values = np.where(satisfiable(n)[part.unique], values, CONTRADICTED)
        found[own] = values
    return found


REPAIRS = {
    "names": Slips(names=False),
    "names and confounders": Slips(names=False, confounders=False),
    "all three": EXACT,
}
"""The bugs of the released generator mended one after the other."""


@cache
def _listed(n: int) -> dict[tuple[Independence, ...], int]:
    """The unique DAG of each released premise on n variables."""
    released = enumeration.equivalence_classes(n, released=True)
    return {independences_of(n, each.unique, released=True): each.unique for each in released}


def repaired(premise: Premise, hypothesis: Hypothesis, repair: str) -> int | None:
    """The label (0 or 1) of a row of the second edition with some of the bugs mended; None for other premises."""
    return labelled_with(premise, hypothesis, REPAIRS[repair])


def labelled_with(premise: Premise, hypothesis: Hypothesis, slips: Slips) -> int | None:
    """The label (0 or 1) that the generator with these slips gives a row of the second edition, else None."""
    n = len(premise.names)
    unique = None if n > MOST or premise.compact else _listed(n).get(premise.independences)
    if unique is None:
        return None
    kind = MEANING.index((hypothesis.relation, False))
    if not slips.descendants and not satisfiable(n)[unique]:
        return 0
    return int(_judged(n, slips)[unique, kind, hypothesis.x, hypothesis.y] == ENTAILED)
