"""Markov equivalence classes against the enumeration of all labelled DAGs."""

from __future__ import annotations

from collections import defaultdict
from functools import cache, reduce
from operator import or_

import pytest
from enumerated import labelled_dags
from hypothesis import given
from hypothesis import strategies as st

from pipeline.causal.classes import class_of, classes, released_order
from pipeline.causal.dseparation import independences
from pipeline.causal.enumeration import unique_codes
from pipeline.causal.equivalence import (
    canonical,
    colliders,
    cpdag,
    members,
)
from pipeline.causal.graphs import Graph, from_code, relabel, skeleton


@cache
def grouped(n: int) -> list[list[Graph]]:
    groups: dict[object, list[Graph]] = defaultdict(list)
    for dag in labelled_dags(n):
        groups[skeleton(dag), colliders(dag)].append(dag)
    return list(groups.values())


@pytest.mark.parametrize(
    ("n", "unlabelled", "labelled", "dags_each"),
    [(2, 2, 2, 1.0), (3, 5, 11, 1.2), (4, 20, 185, 1.55), (5, 142, 8782, 2.13)],
)
def test_counts_are_the_published_ones(n: int, unlabelled: int, labelled: int, dags_each: float) -> None:
    assert len(classes(n)) == unlabelled
    assert round(len(unique_codes(n)) / unlabelled, 2) == dags_each
    assert sum(each.size for each in classes(n)) == labelled == len(grouped(n))


@pytest.mark.parametrize("n", [2, 3, 4])
def test_members_share_all_independences_and_no_other_dag_does(n: int) -> None:
    seen = [{independences(dag) for dag in group} for group in grouped(n)]
    assert all(len(each) == 1 for each in seen)
    assert len(set.union(*seen)) == len(seen)


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_a_cpdag_directs_what_all_members_agree_on(n: int) -> None:
    for group in grouped(n):
        agreed = tuple(reduce(or_, rows) for rows in zip(*group, strict=True))
        assert cpdag(group[0]) == agreed
        assert set(members(agreed)) == set(group)


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_a_representative_is_the_smallest_code_of_its_class(n: int) -> None:
    unique = [from_code(int(code), n) for code in unique_codes(n)]
    firsts: dict[int, int] = {}
    for place, dag in enumerate(unique):
        firsts.setdefault(class_of(cpdag(dag)).index, place)
    assert [unique[firsts[each.index]] for each in classes(n)] == [each.representative for each in classes(n)]
    assert list(firsts) == [each.index for each in classes(n)]


@given(code=st.integers(0, 2**10 - 1), order=st.permutations(range(5)))
def test_the_canonical_form_forgets_the_names(code: int, order: list[int]) -> None:
    graph = cpdag(from_code(code, 5))
    form, labels, _ = canonical(graph)
    assert relabel(graph, labels) == form
    assert canonical(relabel(graph, order))[0] == form
    assert class_of(relabel(graph, order)) == class_of(graph)


@pytest.mark.parametrize(
    ("n", "start"),
    [(2, [1, 0]), (3, [2, 3, 4]), (4, [11, 5]), (5, [62, 72, 26, 20, 113, 128, 96, 55, 68])],
)
def test_the_released_order(n: int, start: list[int]) -> None:
    assert list(released_order(n)[: len(start)]) == start
    assert sorted(released_order(n)) == list(range(len(classes(n))))
