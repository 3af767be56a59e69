"""Markov equivalence classes: CPDAGs, their member DAGs, and the list of classes in the released order."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import combinations, permutations
from math import factorial

import numpy as np
import numpy.typing as npt

from pipeline.causal.dseparation import Independence, independences
from pipeline.causal.graphs import Graph, bits, direct, skeleton, topological_orders, transpose, undirected, unique_dags

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
    while (edge := next((edge for edge in undirected(graph) if _forced(graph, *edge)), None)) is not None:
        graph = direct(graph, *edge)
    return graph


def _forced(graph: Graph, x: int, y: int) -> bool:
    """Whether the undirected edge x - y must be x -> y: else a new v-structure or a cycle would appear."""
    joined, parents = skeleton(graph), transpose(graph)
    into_x, into_y = parents[x] & ~graph[x], parents[y] & ~graph[y]
    if into_x & ~joined[y]:
        return True
    if graph[x] & ~parents[x] & into_y:
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


@lru_cache(maxsize=1 << 14)
def members(graph: Graph) -> tuple[Graph, ...]:
    """Every DAG of the class that this CPDAG stands for; empty when it stands for none."""
    wanted = colliders(graph)
    return tuple(dag for dag in _orientations(graph) if colliders(dag) == wanted and any(topological_orders(dag)))


def _orientations(graph: Graph) -> Iterator[Graph]:
    """Direct one undirected edge either way, follow what is forced, and go on until none is left."""
    edges = undirected(graph)
    if not edges:
        yield graph
        return
    for x, y in (edges[0], edges[0][::-1]):
        yield from _orientations(close(direct(graph, x, y)))


@cache
def _renamings(n: int) -> npt.NDArray[np.intp]:
    return np.array(list(permutations(range(n))), dtype=np.intp)


@lru_cache(maxsize=1 << 16)
def canonical(graph: Graph) -> tuple[Graph, tuple[int, ...], int]:
    """(form, labels, size): the smallest graph among all renamings, one renaming that gives it, how many there are.

    Two graphs are equal up to renaming exactly when their forms are equal; `relabel(graph, labels) == form`.
    """
    n = len(graph)
    orders = _renamings(n)
    matrix = np.array([[row >> j & 1 for j in range(n)] for row in graph])
    masks = matrix[orders[:, :, None], orders[:, None, :]] @ (1 << np.arange(n))
    codes = masks @ (1 << n * np.arange(n)[::-1])
    best = int(np.argmin(codes))
    labels = np.argsort(orders[best])
    size = factorial(n) // int(np.count_nonzero(codes == codes[best]))
    return tuple(int(mask) for mask in masks[best]), tuple(int(label) for label in labels), size


@dataclass(frozen=True)
class EquivalenceClass:
    """One Markov equivalence class up to renaming, with the letters of the released representative."""

    index: int
    """Position in the released list of classes on this many variables (`mec_id`)."""
    representative: Graph
    cpdag: Graph
    form: Graph
    """The canonical form of the CPDAG."""
    size: int
    """How many labelled classes are renamings of this one."""

    @property
    def num_variables(self) -> int:
        """How many variables the class is on."""
        return len(self.cpdag)

    @property
    def name(self) -> str:
        """Variables and index, such as `5:62`."""
        return f"{self.num_variables}:{self.index}"

    def independences(self) -> tuple[Independence, ...]:
        """What is independent of what, with the representative's letters."""
        return _independences(self.representative)


_independences = cache(independences)


@cache
def classes(n: int) -> tuple[EquivalenceClass, ...]:
    """The classes on n variables up to renaming, in the order of the released list."""
    found: dict[Graph, EquivalenceClass] = {}
    for dag in unique_dags(n):
        graph = cpdag(dag)
        form, _, size = canonical(graph)
        if form not in found:
            found[form] = EquivalenceClass(len(found), dag, graph, form, size)
    return tuple(found.values())


@cache
def by_form(n: int) -> dict[Graph, EquivalenceClass]:
    """The classes on n variables, keyed by canonical form."""
    return {each.form: each for each in classes(n)}


def class_of(graph: Graph) -> EquivalenceClass:
    """The class up to renaming of a labelled CPDAG."""
    return by_form(len(graph))[canonical(graph)[0]]


def released_order(n: int) -> tuple[int, ...]:
    """Class indices on n variables in the shuffled order that the released split is cut from (test first)."""
    order = list(range(len(classes(n))))
    random.Random(1).shuffle(order)
    return tuple(order)
