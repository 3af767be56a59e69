"""The equivalence classes up to six variables, up to renaming, in the order of the released list."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache

from pipeline.causal import enumeration
from pipeline.causal.dseparation import Independence
from pipeline.causal.equivalence import canonical, cpdag
from pipeline.causal.graphs import Graph, from_code

MOST = 6
"""Classes are enumerated up to this many variables."""


@dataclass(frozen=True)
class EquivalenceClass:
    """One Markov equivalence class up to renaming, with the letters of the released representative."""

    index: int
    """Position in the list of classes on this many variables (to five variables the released `mec_id`)."""
    representative: Graph
    cpdag: Graph
    form: Graph
    """The canonical form of the CPDAG."""
    size: int
    """How many labelled classes are renamings of this one."""
    unique: int
    """Index of the representative among the DAGs up to renaming."""

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
        return independences_of(self.num_variables, self.unique, released=False)


@cache
def independences_of(n: int, unique: int, released: bool) -> tuple[Independence, ...]:
    """All independences of a DAG, sorted as a premise states them; with `released`, those of the released files."""
    holds = enumeration.independent(n, released)[unique]
    return tuple(each for each, there in zip(enumeration.statements(n), holds.tolist(), strict=True) if there)


@cache
def classes(n: int) -> tuple[EquivalenceClass, ...]:
    """The classes on n variables up to renaming: each by its smallest DAG, in the order of those."""
    found = []
    for index, each in enumerate(enumeration.equivalence_classes(n, released=False)):
        dag = from_code(int(enumeration.unique_codes(n)[each.unique]), n)
        graph = cpdag(dag)
        form, _, size = canonical(graph)
        found.append(EquivalenceClass(index, dag, graph, form, size, each.unique))
    return tuple(found)


@cache
def by_form(n: int) -> dict[Graph, EquivalenceClass]:
    """The classes on n variables, keyed by canonical form."""
    return {each.form: each for each in classes(n)}


def class_of(graph: Graph) -> EquivalenceClass:
    """The class up to renaming of a labelled CPDAG."""
    return by_form(len(graph))[canonical(graph)[0]]


@cache
def shuffled(n: int, released: bool) -> tuple[int, ...]:
    """Positions in the list of classes on n variables in the order that the released splits are cut from."""
    order = list(range(len(enumeration.equivalence_classes(n, released))))
    random.Random(1).shuffle(order)
    return tuple(order)


@cache
def released_order(n: int) -> tuple[int, ...]:
    """Indices of the true classes in the order in which the released files come to them (test first).

    At six variables the released list has a class more for each of six that its independences split in two: the
    first of the two counts.
    """
    true = {each.unique: each.index for each in classes(n)}
    found: dict[int, None] = {}
    for place in shuffled(n, released=True):
        unique = enumeration.equivalence_classes(n, released=True)[place].unique
        index = true.get(unique)
        if index is None:
            index = class_of(cpdag(from_code(int(enumeration.unique_codes(n)[unique]), n))).index
        found.setdefault(index)
    return tuple(found)
