"""Random DAGs on any number of variables, and premises about them."""

from __future__ import annotations

from typing import Literal

import numpy as np

from pipeline.causal.dseparation import Independence, connected, independences
from pipeline.causal.graphs import Graph, bits, pairs, transpose

Family = Literal["erdos-renyi", "scale-free"]


def random_dag(n: int, family: Family, degree: float, rng: np.random.Generator) -> Graph:
    """A DAG on n randomly named nodes with about `degree` neighbours a node.

    Erdos-Renyi: every pair has an edge with the same chance. Scale-free (Barabasi & Albert 1999): nodes come one by
    one and join earlier ones with chances in proportion to their neighbours. All edges follow a random order.
    """
    joined = _erdos_renyi(n, degree, rng) if family == "erdos-renyi" else _scale_free(n, degree, rng)
    order = rng.permutation(n).tolist()
    rows = [0] * n
    for i, j in joined:
        early, late = (i, j) if order[i] < order[j] else (j, i)
        rows[early] |= 1 << late
    return tuple(rows)


def _erdos_renyi(n: int, degree: float, rng: np.random.Generator) -> list[tuple[int, int]]:
    chance = min(1.0, degree / (n - 1))
    return [pair for pair in pairs(n) if rng.random() < chance]


def _scale_free(n: int, degree: float, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Each new node takes half of `degree` neighbours, the broken part at random."""
    weight = np.ones(n)
    found: list[tuple[int, int]] = []
    for node in range(1, n):
        wanted = min(node, int(degree / 2 + rng.random()))
        chances = weight[:node] / weight[:node].sum()
        for other in rng.choice(node, size=wanted, replace=False, p=chances).tolist():
            found.append((other, node))
            weight[[other, node]] += 1
    return found


def minimal_separations(dag: Graph) -> tuple[Independence, ...]:
    """One minimal separating set for each pair that is not adjacent, sorted: what a compact premise states.

    The parents of the pair's later node separate it; whatever is not needed is then left out, node by node (among
    ancestors of the pair separation is that of an undirected graph, so this finds a minimal set: Tian, Paz & Pearl
    1998, section 3).
    """
    parents = transpose(dag)
    found: list[Independence] = []
    for x, y in pairs(len(dag)):
        if not (dag[x] >> y | dag[y] >> x) & 1:
            given = parents[x] if connected(dag, y, parents[x]) >> x & 1 == 0 else parents[y]
            for node in bits(given):
                if not connected(dag, x, given & ~(1 << node)) >> y & 1:
                    given &= ~(1 << node)
            found.append((x, y, bits(given)))
    return tuple(found)


def stated(dag: Graph, compact: bool) -> tuple[Independence, ...]:
    """What a premise about a DAG states."""
    return minimal_separations(dag) if compact else independences(dag)
