"""Witnesses: the short reason why a hypothesis holds in every member of an equivalence class, or why it does not."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, islice, pairwise

from pipeline.causal.equivalence import orientations
from pipeline.causal.graphs import Graph, undirected
from pipeline.causal.relations import Hypothesis, Relation, paths
from pipeline.errors import UserError

MOST_MEMBERS = 1000
"""Witnesses are found among all members of a class; six variables have at most 720."""

Path = tuple[int, ...]
Arrow = tuple[int, int]


@dataclass(frozen=True)
class Witness:
    """Paths that show the hypothesis, and arrows that undo it.

    No arrows and some path: every member shows the hypothesis along one of the paths. No path: no member shows it.
    Arrows: some member has them all, and no member that does shows the hypothesis.
    A direct cause is settled by the edge itself, the path of its two ends.
    """

    paths: tuple[Path, ...] = ()
    arrows: tuple[Arrow, ...] = ()


def mark(graph: Graph, a: int, b: int) -> str:
    """`>`, `<` or `-` as the edge between a and b stands in a CPDAG, `` when there is none."""
    return ("", ">", "<", "-")[(graph[a] >> b & 1) + 2 * (graph[b] >> a & 1)]


def marks(graph: Graph, path: Path) -> str:
    """The marks along a path."""
    return "".join(mark(graph, a, b) for a, b in pairwise(path))


@lru_cache(maxsize=1 << 12)
def _members(graph: Graph) -> tuple[Graph, ...]:
    found = tuple(islice(orientations(graph), MOST_MEMBERS + 1))
    if len(found) > MOST_MEMBERS:
        raise UserError(
            f"more than {MOST_MEMBERS} DAGs satisfy the premise, too many to explain", value=f"{len(graph)} variables",
            do="take a premise with more separated pairs",
        )  # fmt: skip
    return found


@lru_cache(maxsize=1 << 14)
def _shown_from(graph: Graph, x: int, relation: Relation) -> dict[int, dict[Path, int]]:
    found: dict[int, dict[Path, int]] = {}
    for member, dag in enumerate(_members(graph)):
        for path in paths(dag, x, relation):
            along = found.setdefault(path[-1], {})
            along[path] = along.get(path, 0) | 1 << member
    return found


def showing(graph: Graph, hypothesis: Hypothesis) -> dict[Path, int]:
    """The simple paths that show the hypothesis, each with the mask of the members in which it does."""
    return _shown_from(graph, hypothesis.x, hypothesis.relation).get(hypothesis.y, {})


@lru_cache(maxsize=1 << 14)
def with_arrow(graph: Graph) -> dict[Arrow, int]:
    """For either direction of each undirected edge: the mask of the members that have it."""
    return {
        (a, b): sum(1 << member for member, dag in enumerate(_members(graph)) if dag[a] >> b & 1)
        for a, b in undirected(graph)
    }


def every_member(graph: Graph) -> int:
    """The mask of all members of the class."""
    return (1 << len(_members(graph))) - 1


def union(masks: tuple[int, ...]) -> int:
    """The members in at least one of the masks."""
    total = 0
    for each in masks:
        total |= each
    return total


def find(graph: Graph, hypothesis: Hypothesis) -> Witness:
    """The witness with the fewest and shortest paths or fewest arrows, then first in the order of the letters."""
    if hypothesis.relation is Relation.DIRECT:
        edge = (hypothesis.x, hypothesis.y)
        return Witness((edge,) if mark(graph, *edge) else ())
    shown = showing(graph, hypothesis)
    everywhere = every_member(graph)
    ordered = sorted(shown, key=lambda path: (len(path), path))
    if union(tuple(shown.values())) == everywhere:
        chosen = (each for size in range(1, len(shown) + 1) for each in combinations(ordered, size))
        return Witness(next(each for each in chosen if union(tuple(shown[path] for path in each)) == everywhere))
    return Witness(tuple(ordered[:1]), _undoing(graph, shown, ordered[0]) if shown else ())


def short_paths(graph: Graph, hypothesis: Hypothesis) -> list[Path]:
    """The paths of one or two edges between the variables of the hypothesis, from its first; the edge comes first."""
    x, y = hypothesis.x, hypothesis.y
    between = [z for z in range(len(graph)) if z not in (x, y) and mark(graph, x, z) and mark(graph, z, y)]
    return [*([(x, y)] if mark(graph, x, y) else []), *((x, z, y) for z in between)]


def _undoing(graph: Graph, shown: dict[Path, int], path: Path) -> tuple[Arrow, ...]:
    """The fewest arrows that leave only members without the hypothesis; arrows along `path` come first."""
    having = with_arrow(graph)
    holds = union(tuple(shown.values()))
    arrows = sorted(having, key=lambda arrow: (not set(arrow) <= set(path), arrow))
    for size in range(1, len(arrows) + 1):
        for chosen in combinations(arrows, size):
            left = every_member(graph)
            for arrow in chosen:
                left &= having[arrow]
            if left and not left & holds:
                return chosen
    raise ValueError(f"every member of {graph} shows the hypothesis")


def settles(graph: Graph, hypothesis: Hypothesis, witness: Witness) -> int | None:
    """1 or 0 as the witness shows that the hypothesis is implied or not, None when it shows neither.

    The paths must be such as `showing` lists (for a direct cause: its edge or none).
    """
    if hypothesis.relation is Relation.DIRECT:
        return _settles_direct(graph, hypothesis, witness)
    shown = showing(graph, hypothesis)
    if not witness.paths and not witness.arrows:
        return None if shown else 0
    if witness.arrows:
        having = with_arrow(graph)
        left = every_member(graph)
        for arrow in witness.arrows:
            left &= having[arrow]
        return 0 if left and not left & union(tuple(shown.values())) else None
    return 1 if union(tuple(shown[path] for path in witness.paths)) == every_member(graph) else None


def _settles_direct(graph: Graph, hypothesis: Hypothesis, witness: Witness) -> int | None:
    stands = mark(graph, hypothesis.x, hypothesis.y)
    if witness.arrows or bool(witness.paths) != bool(stands):
        return None
    return int(stands == ">")
