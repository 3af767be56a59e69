"""The causal relations between two variables, by simple paths, and which of them a whole equivalence class implies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from functools import cache, lru_cache
from itertools import permutations

import numpy as np
import numpy.typing as npt

from pipeline.causal.equivalence import EquivalenceClass, members
from pipeline.causal.graphs import Graph, bits, pairs, relabel, transpose, unique_dags, unique_index


class Relation(IntEnum):
    """What a hypothesis says of x and y; the last two are symmetrical."""

    DIRECT = 0
    """x -> y."""
    INDIRECT = 1
    """A directed path of two or more edges from x to y (a direct edge may exist too)."""
    COLLIDER = 2
    """x -> ... -> c <- ... <- y: a common effect at any distance."""
    CONFOUNDER = 3
    """x <- ... <- c -> ... -> y: a common cause at any distance."""


@dataclass(frozen=True)
class Hypothesis:
    """One relation between two variables, by index; for the symmetrical ones x < y."""

    relation: Relation
    x: int
    y: int


def hypotheses(n: int) -> tuple[Hypothesis, ...]:
    """All hypotheses about n variables: direct and indirect causes both ways, colliders and confounders once."""
    return tuple(
        Hypothesis(relation, *pair)
        for x, y in pairs(n)
        for relation in Relation
        for pair in (((x, y), (y, x)) if relation <= Relation.INDIRECT else ((x, y),))
    )


Table = npt.NDArray[np.bool_]
"""Shape (relations, n, n): entry [r, x, y] says whether relation r holds of (x, y)."""


def shape(marks: str) -> Relation | None:
    """The relation that a path with these arrows (`>` towards its end, `<` towards its start) shows, if any."""
    forward = len(marks) - len(marks.lstrip(">"))
    backward = len(marks) - len(marks.lstrip("<"))
    if forward == len(marks):
        return Relation.DIRECT if forward == 1 else Relation.INDIRECT
    if forward > 0 and marks[forward:].strip("<") == "":
        return Relation.COLLIDER
    if 0 < backward < len(marks) and marks[backward:].strip(">") == "":
        return Relation.CONFOUNDER
    return None


def paths(dag: Graph, x: int) -> Iterator[tuple[tuple[int, ...], str]]:
    """(nodes, marks) of every simple path from x whose arrows turn at most once."""
    parents = transpose(dag)

    def walk(nodes: tuple[int, ...], marks: str, seen: int) -> Iterator[tuple[tuple[int, ...], str]]:
        for mark, rows in ((">", dag), ("<", parents)):
            if marks and marks[-1] != mark and marks[0] != marks[-1]:
                continue
            for node in bits(rows[nodes[-1]] & ~seen):
                step = ((*nodes, node), marks + mark)
                yield step
                yield from walk(*step, seen | 1 << node)

    return walk((x,), "", 1 << x)


def table(dag: Graph) -> Table:
    """Every relation that holds in one DAG, shape (4, n, n)."""
    return _table(dag, released=False)


def _table(dag: Graph, released: bool) -> Table:
    n = len(dag)
    found = np.zeros((len(Relation), n, n), dtype=np.bool_)
    for x in range(n):
        for nodes, marks in paths(dag, x):
            relation = shape(marks)
            if relation is Relation.CONFOUNDER and released and marks.count(">") > 1:
                continue
            if relation is not None:
                found[relation, x, nodes[-1]] = True
    return found


@lru_cache(maxsize=1 << 14)
def certain(graph: Graph) -> Table:
    """The relations that hold in every member of the class of a CPDAG, shape (4, n, n): the labels that are 1."""
    found: Table = np.logical_and.reduce([table(dag) for dag in members(graph)])
    return found


def label(graph: Graph, hypothesis: Hypothesis) -> int:
    """1 when the hypothesis holds in every member of the class of this CPDAG, else 0."""
    return int(certain(graph)[hypothesis.relation, hypothesis.x, hypothesis.y])


@cache
def _released_certain(each: EquivalenceClass) -> Table:
    n = each.num_variables
    counted = np.ones((len(Relation), n, n), dtype=np.bool_)
    for dag in members(each.cpdag):
        unique = unique_dags(n)[unique_index(dag)]
        order = next(order for order in permutations(range(n)) if relabel(unique, order) == dag)
        counted &= _table(unique, released=True)[:, order][:, :, order]
    return counted


def released_label(each: EquivalenceClass, hypothesis: Hypothesis) -> int:
    """The label of the released files, up to five variables, for a hypothesis in the representative's letters.

    It differs from `label` by two slips of the released generator. Each member is a renaming `order` of a unique
    DAG, whose relation of x and y is read at (order[x], order[y]) instead of at the places that are renamed to x
    and y. And of the common causes only those are seen that are a parent of the second variable.
    """
    return int(_released_certain(each)[hypothesis.relation, hypothesis.x, hypothesis.y])
