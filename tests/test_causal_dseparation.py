"""d-separation against networkx, an independent implementation."""

from __future__ import annotations

import random

import networkx as nx
import pytest
from enumerated import labelled_dags

from pipeline.causal.dseparation import independences
from pipeline.causal.enumeration import unique_codes
from pipeline.causal.graphs import Graph, bits, from_code, pairs


def as_networkx(dag: Graph) -> nx.DiGraph:
    graph = nx.DiGraph()
    graph.add_nodes_from(range(len(dag)))
    graph.add_edges_from((i, j) for i, row in enumerate(dag) for j in bits(row))
    return graph


def by_networkx(dag: Graph) -> list[tuple[int, int, tuple[int, ...]]]:
    n, graph = len(dag), as_networkx(dag)
    return sorted(
        (x, y, bits(mask))
        for x, y in pairs(n)
        for mask in range(1 << n)
        if not mask >> x & 1 and not mask >> y & 1 and nx.is_d_separator(graph, {x}, {y}, set(bits(mask)))
    )


@pytest.mark.parametrize("n", [2, 3, 4])
def test_every_labelled_dag(n: int) -> None:
    for dag in labelled_dags(n):
        assert list(independences(dag)) == by_networkx(dag)


def test_every_dag_on_five_variables_up_to_renaming() -> None:
    for code in unique_codes(5):
        dag = from_code(int(code), 5)
        assert list(independences(dag)) == by_networkx(dag)


@pytest.mark.parametrize("n", [5, 6, 7])
def test_random_dags(n: int) -> None:
    rng = random.Random(n)
    for _ in range({5: 60, 6: 8, 7: 2}[n]):
        order = rng.sample(range(n), n)
        dag = [0] * n
        for i, j in pairs(n):
            dag[order[i]] |= rng.randrange(2) << order[j]
        assert list(independences(tuple(dag))) == by_networkx(tuple(dag))


def test_a_collider_opens_by_a_descendant_of_a_descendant() -> None:
    dag = (0b00100, 0b00100, 0b01000, 0b10000, 0)
    found = independences(dag)
    assert (0, 1, ()) in found
    assert (0, 1, (4,)) not in found
    assert (0, 4, (3,)) in found
