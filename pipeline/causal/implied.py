"""Which relations every member of an equivalence class has: exact by its members, else by bounded search."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Literal

import numpy as np
import numpy.typing as npt

from pipeline.causal.equivalence import close, orientations, rooted
from pipeline.causal.graphs import Graph, bits, transpose, undirected
from pipeline.causal.relations import Hypothesis, Relation, Table, table

Answer = Literal["valid", "invalid", "undecided"]

SEARCHED = 720
"""Members of a class that are looked at one by one: all of them up to six variables."""
SAMPLED = 64
"""Random members of a class that has more."""


@dataclass(frozen=True)
class Implied:
    """What a class implies, from its members or, where there are too many, from some of them."""

    graph: Graph
    """The CPDAG."""
    looked_at: tuple[Graph, ...]
    holds: npt.NDArray[np.bool_]
    """Shape (members looked at, 4, n, n)."""
    complete: bool
    """Whether all members were looked at."""
    certain: Table
    """Shape (4, n, n): every member looked at has the relation."""

    def answer(self, hypothesis: Hypothesis) -> Answer:
        """`valid` when every member has the relation, `invalid` when one has not."""
        if not self._certain(hypothesis):
            return "invalid"
        if self.complete or _compelled(self.graph)[hypothesis.relation, hypothesis.x, hypothesis.y]:
            return "valid"
        found = _search(self.graph, hypothesis)
        return "undecided" if found is None else "invalid" if found else "valid"

    def counterexample(self, hypothesis: Hypothesis) -> Graph | None:
        """A member in which the hypothesis fails, when its answer is invalid."""
        if not self._certain(hypothesis):
            fails = ~self.holds[:, hypothesis.relation, hypothesis.x, hypothesis.y]
            return self.looked_at[int(fails.argmax())]
        if self.complete or _compelled(self.graph)[hypothesis.relation, hypothesis.x, hypothesis.y]:
            return None
        return _search(self.graph, hypothesis) or None

    def _certain(self, hypothesis: Hypothesis) -> bool:
        return bool(self.certain[hypothesis.relation, hypothesis.x, hypothesis.y])


@lru_cache(maxsize=1 << 12)
def implied(graph: Graph) -> Implied:
    """What the class of a CPDAG implies."""
    limit = SEARCHED if len(graph) <= 6 else SAMPLED
    found = tuple(islice(orientations(graph), limit + 1))
    complete = len(found) <= limit
    if not complete:
        rng = random.Random(0)
        found = tuple(dict.fromkeys((*found, *(_random_member(graph, rng) for _ in range(SAMPLED)))))
    holds = np.stack([table(dag) for dag in found])
    return Implied(graph, found, holds, complete, np.logical_and.reduce(holds))


def _random_member(graph: Graph, rng: random.Random) -> Graph:
    while edges := undirected(graph):
        graph = rooted(graph, rng.choice(edges)[0])
    return graph


@lru_cache(maxsize=1 << 10)
def _compelled(graph: Graph) -> Table:
    """The relations that the directed edges of a CPDAG show: every member has them."""
    parents = transpose(graph)
    return table(tuple(row & ~parents[node] for node, row in enumerate(graph)))


def _search(graph: Graph, hypothesis: Hypothesis) -> Graph | tuple[()] | None:
    """A member without the relation; () when there is none, None when it was not found in bounded time.

    Only the parts of undirected edges that a path of the relation could use are gone through.
    """
    reduced = _reduced(graph, hypothesis)
    tried = list(islice(orientations(reduced), 2 * SEARCHED + 1))
    for part in tried:
        if not _has(part, hypothesis):
            return next(orientations(_merged(graph, part)))
    return () if len(tried) <= 2 * SEARCHED else None


@lru_cache(maxsize=1 << 12)
def _table(dag: Graph) -> Table:
    return table(dag)


def _has(dag: Graph, hypothesis: Hypothesis) -> bool:
    return bool(_table(dag)[hypothesis.relation, hypothesis.x, hypothesis.y])


def _reduced(graph: Graph, hypothesis: Hypothesis) -> Graph:
    """The graph without the undirected edges of parts that no path of the relation can touch."""
    rows = transpose(graph) if hypothesis.relation is Relation.CONFOUNDER else graph
    reached, edge = 0, 1 << hypothesis.x | 1 << hypothesis.y
    while edge:
        reached |= edge
        grown = 0
        for node in bits(edge):
            grown |= rows[node]
        edge = grown & ~reached
    # undirected edges lead on both ways: a part of them is reached wholly or not at all
    parents = transpose(graph)
    return tuple(row if reached >> node & 1 else row & ~parents[node] for node, row in enumerate(graph))


def _merged(graph: Graph, part: Graph) -> Graph:
    """The graph with the directions that `part` gives to some of its undirected edges."""
    turned = transpose(part)
    return close(tuple(row & ~(turned[node] & ~part[node]) for node, row in enumerate(graph)))


def certain(graph: Graph) -> Table:
    """The relations that hold in every member of a class on six variables or fewer, shape (4, n, n)."""
    return implied(graph).certain


def label(graph: Graph, hypothesis: Hypothesis) -> int:
    """1 when the hypothesis holds in every member of the class of this CPDAG, else 0 (also when undecided)."""
    return int(implied(graph).answer(hypothesis) == "valid")
