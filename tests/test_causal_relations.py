"""Relations and labels: by definition, and the released ones against the released file."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import networkx as nx
import pytest
from enumerated import labelled_dags
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.causal.classes import classes
from pipeline.causal.equivalence import cpdag, members
from pipeline.causal.graphs import Graph, bits, from_code, relabel, skeleton
from pipeline.causal.implied import certain, label
from pipeline.causal.relations import Hypothesis, Relation, hypotheses, paths, table

RELEASED = Path(__file__).parent.parent.parent / "shared/data/corr2cause/train_head_2500.csv"


def paths_by_definition(dag: Graph, asked: Hypothesis) -> set[tuple[int, ...]]:
    """The paths that show the relation, of all simple paths that networkx finds in the skeleton."""
    graph = nx.Graph((i, j) for i, row in enumerate(skeleton(dag)) for j in bits(row))
    if asked.x not in graph or asked.y not in graph:
        return set()
    found = set()
    for path in nx.all_simple_paths(graph, asked.x, asked.y):
        forward = [bool(dag[a] >> b & 1) for a, b in pairwise(path)]
        turns = [i for i in range(1, len(forward)) if forward[i] != forward[i - 1]]
        shown = {
            Relation.DIRECT: forward == [True],
            Relation.INDIRECT: all(forward) and len(forward) > 1,
            Relation.COLLIDER: len(turns) == 1 and forward[0],
            Relation.CONFOUNDER: len(turns) == 1 and not forward[0],
        }
        if shown[asked.relation]:
            found.add(tuple(path))
    return found


def by_definition(dag: Graph, asked: Hypothesis) -> bool:
    """The relation from the definition."""
    return bool(paths_by_definition(dag, asked))


@pytest.mark.parametrize("n", [2, 3, 4])
def test_relations_follow_the_definition(n: int) -> None:
    for dag in labelled_dags(n):
        found = table(dag)
        for asked in hypotheses(n):
            assert found[asked.relation, asked.x, asked.y] == by_definition(dag, asked)
        assert (found[2:] == found[2:].transpose(0, 2, 1)).all()


@settings(deadline=None)
@given(code=st.integers(0, 2**10 - 1), order=st.permutations(range(5)))
def test_paths_are_those_that_show_the_relation(code: int, order: list[int]) -> None:
    dag = relabel(from_code(code, 5), order)
    for asked in hypotheses(5):
        if asked.relation is not Relation.DIRECT:
            along = [path for path in paths(dag, asked.x, asked.relation) if path[-1] == asked.y]
            assert len(along) == len(set(along))
            assert set(along) == paths_by_definition(dag, asked)


@pytest.mark.parametrize("index", range(0, 142, 7))
def test_a_label_is_one_when_every_member_shows_the_relation(index: int) -> None:
    each = classes(5)[index]
    for asked in hypotheses(5):
        assert label(each.cpdag, asked) == all(by_definition(dag, asked) for dag in members(each.cpdag))


@settings(deadline=None)
@given(code=st.integers(0, 2**10 - 1), order=st.permutations(range(5)))
def test_labels_follow_the_names(code: int, order: list[int]) -> None:
    graph = cpdag(from_code(code, 5))
    renamed = certain(relabel(graph, order))
    assert (renamed[:, order][:, :, order] == certain(graph)).all()


def test_a_cause_may_be_certain_along_different_paths() -> None:
    graph = cpdag((0b0010, 0b1000, 0b1001, 0))
    assert label(graph, Hypothesis(Relation.INDIRECT, 0, 3)) == 1
    assert label(graph, Hypothesis(Relation.DIRECT, 0, 1)) == 0
