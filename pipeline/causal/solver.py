"""From what a premise states to the equivalence class of the DAGs that satisfy it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from pipeline.causal.dseparation import Independence, independences
from pipeline.causal.equivalence import Collider, members, pattern
from pipeline.causal.graphs import Graph, bits, pairs
from pipeline.causal.text import Premise
from pipeline.errors import UserError

Pair = tuple[int, int]


def separating_sets(stated: tuple[Independence, ...]) -> dict[Pair, tuple[int, ...]]:
    """The first stated separating set of each pair that has one; `stated` is sorted."""
    return {(x, y): given for x, y, given in reversed(stated)}


def recover_skeleton(n: int, separated: Mapping[Pair, tuple[int, ...]]) -> Graph:
    """Every pair adjacent that nothing separates (Spirtes, Glymour & Scheines 2000, chapter 5)."""
    rows = [0] * n
    for x, y in pairs(n):
        if (x, y) not in separated:
            rows[x] |= 1 << y
            rows[y] |= 1 << x
    return tuple(rows)


def recover_colliders(joined: Graph, separated: Mapping[Pair, tuple[int, ...]]) -> frozenset[Collider]:
    """The v-structures: x - z - y with x and y not adjacent and z not in the set that separates them."""
    return frozenset(
        (x, z, y) for (x, y), given in separated.items() for z in bits(joined[x] & joined[y]) if z not in given
    )


@lru_cache(maxsize=1 << 14)
def _solve(n: int, stated: tuple[Independence, ...]) -> Graph | None:
    separated = separating_sets(stated)
    joined = recover_skeleton(n, separated)
    graph = pattern(joined, recover_colliders(joined, separated))
    dags = members(graph)
    return graph if dags and independences(dags[0]) == stated else None


def solve(premise: Premise) -> Graph:
    """The CPDAG of the DAGs whose independences are exactly the stated ones. Raises UserError when there is none."""
    graph = _solve(len(premise.names), premise.independences)
    if graph is None:
        raise UserError(
            "no DAG has exactly the stated independences", value=f"{len(premise.independences)} of them",
            do="take the row out, or state every independence of a DAG",
        )  # fmt: skip
    return graph
