"""Graphs as bit masks: edges, names, orders."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from itertools import combinations

Graph = tuple[int, ...]
"""Entry i is a bit mask: bit j set means i -> j; i - j (undirected) sets both bits. Nodes are 0..n-1."""


@cache
def bits(mask: int) -> tuple[int, ...]:
    """Positions of the set bits of `mask`, ascending."""
    return tuple(i for i in range(mask.bit_length()) if mask >> i & 1)


@cache
def pairs(n: int) -> tuple[tuple[int, int], ...]:
    """All pairs i < j of n nodes in lexicographic order."""
    return tuple(combinations(range(n), 2))


@lru_cache(maxsize=1 << 14)
def transpose(graph: Graph) -> Graph:
    """The graph with every arrow turned round: entry i is the mask of the parents of i."""
    columns = [0] * len(graph)
    for i, row in enumerate(graph):
        for j in bits(row):
            columns[j] |= 1 << i
    return tuple(columns)


def skeleton(graph: Graph) -> Graph:
    """The graph with every edge undirected."""
    return tuple(row | column for row, column in zip(graph, transpose(graph), strict=True))


def undirected(graph: Graph) -> tuple[tuple[int, int], ...]:
    """Every undirected edge, both ways round."""
    return tuple((i, j) for i, row in enumerate(graph) for j in bits(row) if graph[j] >> i & 1)


def direct(graph: Graph, x: int, y: int) -> Graph:
    """The graph with the edge x - y made x -> y."""
    return (*graph[:y], graph[y] & ~(1 << x), *graph[y + 1 :])


def from_code(code: int, n: int) -> Graph:
    """The DAG with edge i -> j for every set bit of `code`; bits follow `pairs(n)`."""
    rows = [0] * n
    for bit, (i, j) in enumerate(pairs(n)):
        rows[i] |= (code >> bit & 1) << j
    return tuple(rows)


def to_code(graph: Graph) -> int:
    """The inverse of `from_code`, for a graph whose edges all run from the lower to the higher node."""
    return sum((graph[i] >> j & 1) << bit for bit, (i, j) in enumerate(pairs(len(graph))))


def relabel(graph: Graph, labels: Sequence[int]) -> Graph:
    """The same graph with node i called `labels[i]`."""
    rows = [0] * len(graph)
    for i, row in enumerate(graph):
        rows[labels[i]] = sum(1 << labels[j] for j in bits(row))
    return tuple(rows)


def topological_orders(graph: Graph) -> Iterator[tuple[int, ...]]:
    """Every order of the nodes in which all edges point forward; none when the graph has a cycle."""
    parents = transpose(graph)

    def extend(order: tuple[int, ...], placed: int) -> Iterator[tuple[int, ...]]:
        if len(order) == len(graph):
            yield order
        for node, needed in enumerate(parents):
            if not placed >> node & 1 and needed & ~placed == 0:
                yield from extend((*order, node), placed | 1 << node)

    return extend((), 0)


def along(graph: Graph, order: Sequence[int]) -> Graph:
    """The graph relabelled so that each node is called by its position in `order`."""
    labels = [0] * len(graph)
    for position, node in enumerate(order):
        labels[node] = position
    return relabel(graph, labels)
