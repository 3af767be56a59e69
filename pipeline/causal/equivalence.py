"""Markov equivalence classes: CPDAGs, their member DAGs, and a form that forgets the names of the variables."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import combinations
from math import factorial

import igraph

from pipeline.causal.graphs import Graph, bits, direct, relabel, skeleton, topological_orders, transpose, undirected

Collider = tuple[int, int, int]
"""(x, z, y) with x < y: x -> z <- y where x and y are not adjacent (a v-structure)."""


def colliders(graph: Graph) -> frozenset[Collider]:
    """The v-structures of a DAG or CPDAG."""
    parents, joined = transpose(graph), skeleton(graph)
    into = [mask & ~graph[z] for z, mask in enumerate(parents)]
    return frozenset(
        (x, z, y) for z, mask in enumerate(into) for x, y in combinations(bits(mask), 2) if not joined[x] >> y & 1
    )


def close(graph: Graph) -> Graph:
    """Direct every undirected edge whose direction follows from the directed ones (Meek 1995, rules 1 to 3)."""
    joined = skeleton(graph)
    before: Graph | None = None
    while graph != before:
        before = graph
        for x, y in undirected(graph):
            if graph[y] >> x & 1 and graph[x] >> y & 1 and _forced(graph, joined, x, y):
                graph = direct(graph, x, y)
    return graph


def _forced(graph: Graph, joined: Graph, x: int, y: int) -> bool:
    """Whether the undirected edge x - y must be x -> y: else a new v-structure or a cycle would appear."""
    parents = transpose(graph)
    into_x, into_y = parents[x] & ~graph[x], parents[y] & ~graph[y]
    if into_x & ~joined[y] or graph[x] & ~parents[x] & into_y:
        return True
    through = bits(graph[x] & parents[x] & into_y)
    return any(not joined[a] >> b & 1 for a, b in combinations(through, 2))


def pattern(joined: Graph, v_structures: frozenset[Collider]) -> Graph:
    """The CPDAG with this skeleton and these v-structures, provided that some DAG has them."""
    rows = list(joined)
    for x, z, y in v_structures:
        rows[z] &= ~(1 << x | 1 << y)
    return close(tuple(rows))


@lru_cache(maxsize=1 << 16)
def cpdag(dag: Graph) -> Graph:
    """The CPDAG of a DAG: its skeleton, the edges directed alike in every member of its class directed."""
    return pattern(skeleton(dag), colliders(dag))


def is_acyclic(graph: Graph) -> bool:
    """Whether a graph without undirected edges is a DAG."""
    return next(topological_orders(graph), None) is not None


@lru_cache(maxsize=1 << 14)
def stands(graph: Graph) -> bool:
    """Whether a graph is the CPDAG of some DAG (Andersson, Madigan & Perlman 1997)."""
    dag = next(orientations(graph))
    return is_acyclic(dag) and cpdag(dag) == graph


@lru_cache(maxsize=1 << 14)
def members(graph: Graph) -> tuple[Graph, ...]:
    """Every DAG of the class that this CPDAG stands for; empty when it stands for none."""
    return tuple(orientations(graph)) if stands(graph) else ()


def orientations(graph: Graph) -> Iterator[Graph]:
    """The members of the class of a CPDAG, each once.

    Every member has one source in each part that undirected edges join. With its edges pointing away, and what
    follows from that, smaller parts are left (He, Jia & Yu 2015, section 3).
    """
    edges = undirected(graph)
    if not edges:
        yield graph
        return
    for root in bits(_part(graph, edges[0][0])):
        yield from orientations(rooted(graph, root))


def rooted(graph: Graph, root: int) -> Graph:
    """The graph with the undirected edges of `root` pointing away from it, and all that follows."""
    joined = graph[root] & transpose(graph)[root]
    return close(tuple(row & ~(1 << root) if joined >> node & 1 else row for node, row in enumerate(graph)))


def _part(graph: Graph, node: int) -> int:
    """The mask of the nodes that undirected edges join to `node`."""
    parents = transpose(graph)
    found, edge = 1 << node, 1 << node
    while edge:
        grown = 0
        for each in bits(edge):
            grown |= graph[each] & parents[each]
        edge = grown & ~found
        found |= edge
    return found


@lru_cache(maxsize=1 << 16)
def canonical(graph: Graph) -> tuple[Graph, tuple[int, ...], int]:
    """(form, labels, size): the graph under names that all its renamings agree on, those names, how many there are.

    Two graphs are equal up to renaming exactly when their forms are equal; `relabel(graph, labels) == form`. By
    igraph's BLISS, which takes undirected graphs with coloured nodes: an arrow becomes a path of two coloured nodes.
    """
    n = len(graph)
    edges: list[tuple[int, int]] = []
    colours = [0] * n
    for x, row in enumerate(graph):
        for y in bits(row):
            if not graph[y] >> x & 1:
                tail = len(colours)
                colours += [1, 2]
                edges += [(x, tail), (tail, tail + 1), (tail + 1, y)]
            elif x < y:
                edges.append((x, y))
    drawn = igraph.Graph(n=len(colours), edges=edges)
    order = [node for node in drawn.canonical_permutation(color=colours) if node < n]
    labels = tuple(order.index(node) for node in range(n))
    size = factorial(n) // int(drawn.count_automorphisms(color=colours))
    return relabel(graph, labels), labels, size
