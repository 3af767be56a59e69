"""Exact d-separation in a DAG, and the list of all conditional independences that it implies."""

from __future__ import annotations

from functools import cache

from pipeline.causal.graphs import Graph, bits, pairs, transpose

Independence = tuple[int, int, tuple[int, ...]]
"""(x, y, given) with x < y and `given` ascending: x and y are independent given those nodes."""


def _union(rows: Graph, mask: int) -> int:
    union = 0
    for node in bits(mask):
        union |= rows[node]
    return union


def ancestors(parents: Graph, mask: int) -> int:
    """The mask of the nodes in `mask` and all their ancestors; `parents` is the transposed graph."""
    while (grown := mask | _union(parents, mask)) != mask:
        mask = grown
    return mask


def connected(graph: Graph, x: int, given: int) -> int:
    """The mask of the nodes that `x` is d-connected to given the mask `given`.

    A trail is followed upwards (arriving from a child) and downwards (arriving from a parent); a node lets a
    downward trail turn up only when it or a descendant is given (Koller & Friedman 2009, algorithm 3.1).
    """
    parents = transpose(graph)
    opened = ancestors(parents, given)
    up, down = 1 << x, 0
    while True:
        passing = (up | down) & ~given
        grown_up = up | _union(parents, (up & ~given) | (down & opened))
        grown_down = down | _union(graph, passing)
        if (grown_up, grown_down) == (up, down):
            return passing & ~(1 << x)
        up, down = grown_up, grown_down


@cache
def _conditions(n: int, x: int) -> tuple[int, ...]:
    return tuple(mask for mask in range(1 << n) if not mask >> x & 1)


def independences(graph: Graph) -> tuple[Independence, ...]:
    """All (x, y, given) with x and y d-separated by `given`, sorted as a premise states them."""
    n = len(graph)
    reach = {(x, given): connected(graph, x, given) for x in range(n) for given in _conditions(n, x)}
    return tuple(
        sorted(
            (x, y, bits(given))
            for x, y in pairs(n)
            for given in _conditions(n, x)
            if not given >> y & 1 and not reach[x, given] >> y & 1
        )
    )
