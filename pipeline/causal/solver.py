"""From what a premise states to the class of the DAGs that satisfy it, and from that to the answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from pipeline.causal.dseparation import Independence, connected, independences
from pipeline.causal.equivalence import Collider, orientations, pattern, stands
from pipeline.causal.graphs import Graph, bits, pairs, skeleton
from pipeline.causal.implied import implied
from pipeline.causal.text import Parsed, Premise
from pipeline.errors import UserError

Pair = tuple[int, int]
Verdict = Literal["valid", "invalid", "contradictory", "undecided"]


class NoDag(UserError):
    """A premise that no DAG satisfies."""


@dataclass(frozen=True)
class Solution:
    """The answer to a row."""

    verdict: Verdict
    """`contradictory`: no DAG satisfies the premise. `undecided`: not settled by bounded search (above 6 variables)."""
    witness: Graph | None = None
    """For an invalid hypothesis, a DAG that satisfies the premise and in which it fails."""

    @property
    def label(self) -> int:
        """1 for valid, 0 for all else."""
        return int(self.verdict == "valid")


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
def _solve(n: int, stated: tuple[Independence, ...], compact: bool) -> Graph | None:
    separated = separating_sets(stated)
    joined = recover_skeleton(n, separated)
    graph = pattern(joined, recover_colliders(joined, separated))
    if skeleton(graph) != joined or not stands(graph):  # two v-structures may each claim an edge: then it is gone
        return None
    dag = next(orientations(graph))
    if not compact:
        return graph if independences(dag) == stated else None
    apart = (not connected(dag, x, sum(1 << z for z in given)) >> y & 1 for x, y, given in stated)
    return graph if all(apart) else None


def solve(premise: Premise) -> Graph:
    """The CPDAG of the DAGs whose independences are exactly the stated ones. Raises NoDag when there is none.

    A compact premise states one separating set for each pair that is not adjacent: they must all hold.
    """
    graph = _solve(len(premise.names), premise.independences, premise.compact)
    if graph is None:
        raise NoDag(
            "no DAG has exactly the stated independences", value=f"{len(premise.independences)} of them",
            do="take the row out, or state every independence of a DAG",
        )  # fmt: skip
    return graph


def answer(row: Parsed) -> Solution:
    """Whether the hypothesis holds in every DAG that satisfies the premise, with a witness where it does not."""
    try:
        found = implied(solve(row.premise))
    except NoDag:
        return Solution("contradictory")
    verdict = found.answer(row.hypothesis)
    return Solution(verdict, found.counterexample(row.hypothesis) if verdict == "invalid" else None)


def edges(dag: Graph, names: tuple[str, ...]) -> str:
    """`A -> B, C -> B`; `no edges` for a DAG without any."""
    listed = [f"{names[x]} -> {names[y]}" for x, row in enumerate(dag) for y in bits(row)]
    return ", ".join(listed) or "no edges"
