"""The causal relations between two variables, by simple paths in a DAG."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from functools import cache

import numpy as np
import numpy.typing as npt

from pipeline.causal.graphs import Graph, bits, pairs, transpose


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


@cache
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


def paths(dag: Graph, x: int, relation: Relation) -> list[tuple[int, ...]]:
    """The simple paths from x that show a relation other than a direct cause, by their nodes."""
    parents = transpose(dag)
    first = parents if relation is Relation.CONFOUNDER else dag
    second = None if relation is Relation.INDIRECT else parents if relation is Relation.COLLIDER else dag
    found: list[tuple[int, ...]] = []

    def walk(nodes: tuple[int, ...], seen: int, turned: bool) -> None:
        if not turned:
            for node in bits(first[nodes[-1]] & ~seen):
                step = (*nodes, node)
                if second is None and len(step) > 2:
                    found.append(step)
                walk(step, seen | 1 << node, False)
        if second is not None and len(nodes) > 1:
            for node in bits(second[nodes[-1]] & ~seen):
                found.append((*nodes, node))
                walk((*nodes, node), seen | 1 << node, True)

    walk((x,), 1 << x, False)
    return found


def table(dag: Graph) -> Table:
    """Every relation that holds in one DAG, shape (4, n, n).

    A common effect on a simple path is a node that x reaches without passing y and y without passing x: the first
    one that both reach ends two paths with nothing else in common. Common causes are the same with arrows reversed.
    """
    n = len(dag)
    parents = transpose(dag)
    below = [[_reach(dag, x, y) for y in range(n)] for x in range(n)]
    above = [[_reach(parents, x, y) for y in range(n)] for x in range(n)]
    found = np.zeros((len(Relation), n, n), dtype=np.bool_)
    for x in range(n):
        for y in range(n):
            if x != y:
                found[Relation.DIRECT, x, y] = dag[x] >> y & 1
                found[Relation.INDIRECT, x, y] = any(below[c][x] >> y & 1 for c in bits(dag[x] & ~(1 << y)))
                found[Relation.COLLIDER, x, y] = below[x][y] & below[y][x]
                found[Relation.CONFOUNDER, x, y] = above[x][y] & above[y][x]
    return found


def _reach(rows: Graph, start: int, avoided: int) -> int:
    """The mask of the nodes that arrows lead to from `start` (itself among them) without passing `avoided`."""
    found, edge = 1 << start, 1 << start
    while edge:
        grown = 0
        for node in bits(edge):
            grown |= rows[node]
        edge = grown & ~found & ~(1 << avoided)
        found |= edge
    return found
