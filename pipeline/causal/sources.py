"""Where generated premises come from: every class to six variables, random DAGs above."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import factorial

import numpy as np

from pipeline.causal.classes import MOST
from pipeline.causal.dseparation import Independence
from pipeline.causal.equivalence import canonical, cpdag
from pipeline.causal.graphs import Graph, along, topological_orders
from pipeline.causal.random_dags import Family, minimal_separations, random_dag
from pipeline.causal.splits import Split, class_name, classes_of, split_of
from pipeline.errors import UserError

TRIES = 200
"""Random DAGs drawn for one premise before its set is taken to have no more of them."""


@dataclass(frozen=True)
class Dags:
    """How DAGs above six variables are drawn."""

    family: Family = "erdos-renyi"
    degree: float = 2.5
    """Mean number of neighbours of a variable."""
    premises: int = 100
    """How many different classes a set has on one number of variables."""
    seed: int = 0


@dataclass(frozen=True)
class Source:
    """One equivalence class up to renaming, with letters in the order of the causes."""

    cpdag: Graph
    stated: tuple[Independence, ...]
    """What its premise states: all independences, or above six variables one minimal separating set a pair."""
    name: str
    weight: float
    """How often it is drawn, relative to others on as many variables."""
    size: int
    """How many labelled classes are renamings of it."""


@cache
def sources(split: Split, n: int, dags: Dags) -> tuple[Source, ...]:
    """The classes on n variables that rows of a split are about. Raises UserError when random DAGs give too few."""
    if n <= MOST:
        return tuple(
            Source(each.cpdag, each.independences(), each.name, float(each.size), each.size)
            for each in classes_of(split, n)
        )
    return _random_sources(split, n, dags)


def _random_sources(split: Split, n: int, dags: Dags) -> tuple[Source, ...]:
    rng = np.random.default_rng([dags.seed, n, ("train", "dev", "test").index(split)])
    found: dict[Graph, Source] = {}
    for _ in range(TRIES * dags.premises):
        if len(found) == dags.premises:
            return tuple(found.values())
        drawn = random_dag(n, dags.family, dags.degree, rng)
        dag = along(drawn, next(topological_orders(drawn)))
        form, _, size = canonical(cpdag(dag))
        if split_of(form) == split and form not in found:
            stated = minimal_separations(dag)
            found[form] = Source(cpdag(dag), stated, class_name(form), 1.0, min(size, factorial(12)))
    raise UserError(
        f"random DAGs on {n} variables give too few different classes for {split}", value=len(found),
        where=f"{dags.family}, degree {dags.degree}", do="ask for fewer premises, or another degree",
    )  # fmt: skip
