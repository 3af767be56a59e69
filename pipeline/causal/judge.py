"""Whether the statements of a trace are true of a premise, and whether a section of them says all that it must."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

from pipeline.causal.dseparation import Independence
from pipeline.causal.equivalence import Collider, colliders
from pipeline.causal.graphs import Graph, pairs
from pipeline.causal.relations import Hypothesis, Relation
from pipeline.causal.solver import solve
from pipeline.causal.text import Premise, split_names
from pipeline.causal.witness import Arrow, Path, Witness, mark, marks, settles, short_paths, showing, with_arrow

_PATH = re.compile(r"[^\s,;]+(?: [<>-] [^\s,;]+)+")
_SEPARATED = re.compile(r"([^\s,;]+), ([^\s,;]+) given ([^;]+)")
_FORM = "not a statement of this section, or not about different variables of the premise"
_TWICE = "said before"


@dataclass(frozen=True)
class Known:
    """What is true of a premise."""

    places: dict[str, int]
    """Variable name to index."""
    graph: Graph
    """The CPDAG."""
    colliders: frozenset[Collider]
    independences: frozenset[Independence]
    adjacent: frozenset[tuple[int, int]]
    directed: frozenset[tuple[int, int]]
    """The pairs x < y whose edge is directed, either way."""


@lru_cache(maxsize=1 << 12)
def known(premise: Premise) -> Known:
    """What is true of a premise. Raises UserError when no DAG satisfies it."""
    graph = solve(premise)
    stands = {pair: mark(graph, *pair) for pair in pairs(len(graph))}
    return Known(
        places={name: place for place, name in enumerate(premise.names)},
        graph=graph,
        colliders=colliders(graph),
        independences=frozenset(premise.independences),
        adjacent=frozenset(pair for pair, each in stands.items() if each),
        directed=frozenset(pair for pair, each in stands.items() if each in ("<", ">")),
    )


@lru_cache(maxsize=1 << 14)
def _split_path(text: str) -> tuple[tuple[str, ...], str]:
    """Names and marks of a path; no names when it is none, or passes a variable twice."""
    words = text.split(" ")
    names = tuple(words[::2])
    return (names, "".join(words[1::2])) if _PATH.fullmatch(text) and len(set(names)) == len(names) else ((), "")


@dataclass
class Judge:
    """Judges the statements of one section in turn, and then the section; every reason is `` when all is well."""

    known: Known
    hypothesis: Hypothesis
    said: set[tuple[int, ...]] = field(default_factory=set)
    paths: list[Path] = field(default_factory=list)
    arrows: list[Arrow] = field(default_factory=list)

    def statement(self, head: str, text: str) -> str:
        """Why one statement is false."""
        if head == "Skeleton" and (match := _SEPARATED.fullmatch(text)):
            return self._separated(match[1], match[2], match[3])
        unless = head == "Check" and text.startswith("unless ")
        path = self._read_path(text.removeprefix("unless ") if unless else text)
        if path is None:
            return _FORM
        if unless:
            return self._unless(*path)
        return _JUDGES[head](self, *path)

    def whole(self, head: str) -> str:
        """Why the section, whose statements are all true, does not say all that it must."""
        if head == "Check":
            return "" if self.outcome() is not None else "it does not settle the hypothesis"
        facts = self.known
        if head == "Paths":
            needed = {tuple(sorted(path)) for path in short_paths(facts.graph, self.hypothesis)}
            return "" if needed <= {tuple(sorted(path)) for path in self.said} else "not all short paths are said"
        listed = {"Skeleton": facts.adjacent, "Colliders": facts.colliders, "Edges": facts.directed}[head]
        return "" if listed <= self.said else "not all of them are said"

    def outcome(self) -> int | None:
        """What a check section of true statements settles the hypothesis to be; None when it does not."""
        return settles(self.known.graph, self.hypothesis, Witness(tuple(self.paths), tuple(self.arrows)))

    def _read_path(self, text: str) -> tuple[Path, str] | None:
        names, arrows = _split_path(text)
        try:
            return (tuple(map(self.known.places.__getitem__, names)), arrows) if names else None
        except KeyError:
            return None

    def _say(self, key: tuple[int, ...]) -> str:
        if key in self.said:
            return _TWICE
        self.said.add(key)
        return ""

    def _separated(self, first: str, second: str, given: str) -> str:
        names = [first, second, *(() if given == "nothing" else split_names(given))]
        if not self.known.places.keys() >= set(names):
            return _FORM
        x, y, *rest = (self.known.places[name] for name in names)
        x, y = sorted((x, y))
        if (x, y, tuple(sorted(rest))) not in self.known.independences:
            return "the premise does not state it"
        return self._say((x, y))

    def _adjacent(self, path: Path, arrows: str) -> str:
        if arrows != "-":
            return _FORM
        pair = (min(path), max(path))
        return self._say(pair) if pair in self.known.adjacent else "the premise separates them"

    def _collider(self, path: Path, arrows: str) -> str:
        if arrows != "><":
            return _FORM
        key = (min(path[0], path[2]), path[1], max(path[0], path[2]))
        return self._say(key) if key in self.known.colliders else "no v-structure of the premise"

    def _edge(self, path: Path, arrows: str) -> str:
        if len(arrows) > 1:
            return _FORM
        stands = mark(self.known.graph, *path)
        return self._say((min(path), max(path))) if stands == arrows else f"it is {stands or 'no edge'}"

    def _unless(self, path: Path, arrows: str) -> str:
        if arrows != ">" or path not in with_arrow(self.known.graph):
            return "not a direction of an undirected edge"
        self.arrows.append((path[0], path[1]))
        return self._say(path)

    def _between(self, path: Path, arrows: str) -> str:
        asked = self.hypothesis
        if marks(self.known.graph, path) != arrows:
            return "the edges do not stand so"
        if {path[0], path[-1]} != {asked.x, asked.y}:
            return "not a path between the variables of the hypothesis"
        return self._say(path if path[0] == asked.x else path[::-1])

    def _shows(self, path: Path, arrows: str) -> str:
        asked = self.hypothesis
        reason = self._between(path, arrows)
        if reason:
            return reason
        path = path if path[0] == asked.x else path[::-1]
        direct = asked.relation is Relation.DIRECT
        if len(path) > 2 if direct else path not in showing(self.known.graph, asked):
            return "the hypothesis does not hold along this path in any DAG that fits the premise"
        self.paths.append(path)
        return ""


_JUDGES: dict[str, Callable[[Judge, Path, str], str]] = {
    "Skeleton": Judge._adjacent,
    "Colliders": Judge._collider,
    "Edges": Judge._edge,
    "Paths": Judge._between,
    "Check": Judge._shows,
}
"""What judges a path that stands in a section."""
