"""Other readings of the relations whose wording is ambiguous, to see what they would change in the labels."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from pipeline.causal.dseparation import ancestors
from pipeline.causal.graphs import Graph, transpose
from pipeline.causal.implied import implied
from pipeline.causal.relations import Relation, Table, table


def _parents_only(dag: Graph) -> Table:
    """A collider is a common child, a confounder a common parent."""
    found, parents = table(dag), transpose(dag)
    for x in range(len(dag)):
        for y in range(len(dag)):
            found[Relation.COLLIDER, x, y] = x != y and dag[x] & dag[y]
            found[Relation.CONFOUNDER, x, y] = x != y and parents[x] & parents[y]
    return found


def _any_distance(dag: Graph) -> Table:
    """A collider is a common descendant, a confounder a common ancestor, even by way of each other."""
    found, parents, n = table(dag), transpose(dag), len(dag)
    above = [ancestors(parents, 1 << x) & ~(1 << x) for x in range(n)]
    below = [ancestors(dag, 1 << x) & ~(1 << x) for x in range(n)]
    for x in range(n):
        for y in range(n):
            found[Relation.COLLIDER, x, y] = x != y and below[x] & below[y]
            found[Relation.CONFOUNDER, x, y] = x != y and above[x] & above[y]
    return found


def _never_direct(dag: Graph) -> Table:
    """An indirect cause is not a direct one at the same time."""
    found = table(dag)
    found[Relation.INDIRECT] &= ~found[Relation.DIRECT]
    return found


def _parent_of_the_second(dag: Graph) -> Table:
    """A confounder is a parent of the second variable: the slip of the released generator."""
    found, parents, n = table(dag), transpose(dag), len(dag)
    for x in range(n):
        for y in range(x + 1, n):
            without = tuple(0 if node == y else row & ~(1 << y) for node, row in enumerate(parents))
            above = ancestors(without, 1 << x) & ~(1 << x)
            found[Relation.CONFOUNDER, x, y] = found[Relation.CONFOUNDER, y, x] = bool(above & parents[y])
    return found


READINGS: dict[str, Callable[[Graph], Table]] = {
    "paths": table,
    "common child, common parent": _parents_only,
    "common descendant, common ancestor": _any_distance,
    "indirect means not direct": _never_direct,
    "common cause is a parent of the second": _parent_of_the_second,
}
"""By name; `paths` is the definition of the data set: at any distance, along paths without repeated variables."""


@lru_cache(maxsize=1 << 12)
def certain_by(graph: Graph, reading: str) -> Table | None:
    """What the whole class of a CPDAG has by a reading; None where it has too many members to look at."""
    found = implied(graph)
    if not found.complete:
        return None
    if reading == "paths":
        return found.certain
    held: Table = np.logical_and.reduce([READINGS[reading](dag) for dag in found.looked_at])
    return held
