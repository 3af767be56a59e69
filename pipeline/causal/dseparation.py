"""Exact d-separation in a DAG, and the list of all conditional independences that it implies."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

from pipeline.causal.graphs import Graph, bits, pairs, transpose

Independence = tuple[int, int, tuple[int, ...]]
"""(x, y, given) with x < y and `given` ascending: x and y are independent given those nodes."""


_Union = Callable[[int], int]
"""From a mask of nodes to the mask of all their parents, or of all their children."""


def _union(rows: Graph, mask: int) -> int:
    union = 0
    for node in bits(mask):
        union |= rows[node]
    return union


def _unions(rows: Graph) -> list[int]:
    """`_union` of every mask, in the order of the masks."""
    table = [0]
    for row in rows:
        table += [row | each for each in table]
    return table


def ancestors(parents: Graph, mask: int) -> int:
    """The mask of the nodes in `mask` and all their ancestors; `parents` is the transposed graph."""
    return _ancestors(partial(_union, parents), mask)


def _ancestors(parents: _Union, mask: int) -> int:
    while (grown := mask | parents(mask)) != mask:
        mask = grown
    return mask


def connected(graph: Graph, x: int, given: int) -> int:
    """The mask of the nodes that `x` is d-connected to given the mask `given`.

    A trail is followed upwards (arriving from a child) and downwards (arriving from a parent); a node lets a
    downward trail turn up only when it or a descendant is given (Koller & Friedman 2009, algorithm 3.1).
    """
    return _connected(partial(_union, transpose(graph)), partial(_union, graph), x, given)


def _connected(parents: _Union, children: _Union, x: int, given: int) -> int:
    opened = _ancestors(parents, given)
    up, down = 1 << x, 0
    while True:
        passing = (up | down) & ~given
        grown_up = up | parents((up & ~given) | (down & opened))
        grown_down = down | children(passing)
        if (grown_up, grown_down) == (up, down):
            return passing & ~(1 << x)
        up, down = grown_up, grown_down


@cache
def _conditions(n: int, x: int) -> tuple[int, ...]:
    return tuple(mask for mask in range(1 << n) if not mask >> x & 1)


def independences(graph: Graph) -> tuple[Independence, ...]:
    """All (x, y, given) with x and y d-separated by `given`, sorted as a premise states them."""
    n = len(graph)
    parents, children = (_unions(rows).__getitem__ for rows in (transpose(graph), graph))
    reach = {(x, given): _connected(parents, children, x, given) for x in range(n - 1) for given in _conditions(n, x)}
    return tuple(
        sorted(
            (x, y, bits(given))
            for x, y in pairs(n)
            for given in _conditions(n, x)
            if not given >> y & 1 and not reach[x, given] >> y & 1
        )
    )
