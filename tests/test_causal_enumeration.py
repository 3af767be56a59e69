"""All graphs at once: known counts, and every array against the definitions."""

from __future__ import annotations

from math import factorial

import numpy as np
import pytest

from pipeline.causal import enumeration as e
from pipeline.causal.classes import classes, independences_of, released_order
from pipeline.causal.dseparation import independences
from pipeline.causal.enumeration import Slips
from pipeline.causal.equivalence import canonical, cpdag, members
from pipeline.causal.graphs import from_code, relabel
from pipeline.causal.implied import certain
from pipeline.causal.relations import table

SIZES = [2, 3, 4, 5, 6]
UNLABELLED_DAGS = {2: 2, 3: 6, 4: 31, 5: 302, 6: 5984}
LABELLED_DAGS = {2: 3, 3: 25, 4: 543, 5: 29281, 6: 3781503}
LABELLED_CLASSES = {2: 2, 3: 11, 4: 185, 5: 8782, 6: 1067825}
UNLABELLED_CLASSES = {2: 2, 3: 5, 4: 20, 5: 142, 6: 2201}
RELEASED_CLASSES = {2: 2, 3: 5, 4: 20, 5: 142, 6: 2207}


@pytest.mark.parametrize("n", SIZES)
def test_counts_of_dags(n: int) -> None:
    codes = e.unique_codes(n)
    assert len(codes) == UNLABELLED_DAGS[n]  # OEIS A003087
    assert sum(canonical(from_code(int(code), n))[2] for code in codes) == LABELLED_DAGS[n]  # OEIS A003024


@pytest.mark.parametrize("n", SIZES)
def test_counts_of_classes(n: int) -> None:
    assert len(classes(n)) == UNLABELLED_CLASSES[n]
    assert sum(each.size for each in classes(n)) == LABELLED_CLASSES[n]  # OEIS A007984
    assert len(e.equivalence_classes(n, released=True)) == RELEASED_CLASSES[n]


def test_the_mean_number_of_edges_is_the_published_one() -> None:
    edges = [int(code).bit_count() for code in e.unique_codes(6)]
    assert round(sum(edges) / len(edges), 2) == 8.77


@pytest.mark.parametrize(("n", "step"), [(3, 1), (4, 1), (5, 1), (6, 37)])
def test_independences_and_relations_are_those_of_each_dag(n: int, step: int) -> None:
    codes = e.unique_codes(n)
    for place in range(0, len(codes), step):
        dag = from_code(int(codes[place]), n)
        assert independences_of(n, place, released=False) == independences(dag)
        assert (e.related(n, slip=False)[place] == table(dag)).all()


@pytest.mark.parametrize(("n", "step"), [(3, 1), (4, 1), (5, 3), (6, 53)])
def test_members_and_counts_are_those_of_the_class(n: int, step: int) -> None:
    codes, orders = e.unique_codes(n), e.renamings(n)
    for each in e.classes_of_unique(n, released=False)[::step]:
        graph = cpdag(from_code(int(codes[each.unique]), n))
        named = [relabel(from_code(int(codes[u]), n), orders[p].tolist()) for u, p in each.members]
        assert len(set(named)) == len(named)
        assert set(named) == set(members(graph))
        assert ((e.counts(n, each) == len(named)) == certain(graph)).all()


def test_the_released_slip_adds_one_false_independence_to_twenty_premises() -> None:
    more = e.independent(6, True).astype(int) - e.independent(6, False)
    assert more.min() == 0
    wrong = np.flatnonzero(more.sum(axis=1))
    assert len(wrong) == 20
    assert set(more[wrong].sum(axis=1).tolist()) == {1}
    for n in (2, 3, 4, 5):
        assert (e.independent(n, True) == e.independent(n, False)).all()


def test_each_slip_can_be_mended_alone() -> None:
    each = e.equivalence_classes(5, released=True)[20]
    seen = {
        e.counts(5, each, Slips(names, confounders)).tobytes()
        for names in (True, False)
        for confounders in (True, False)
    }
    assert len(seen) > 1


def test_the_released_order_begins_with_the_released_test_classes() -> None:
    released = e.equivalence_classes(6, released=True)
    true = classes(6)
    wanted = [
        cpdag(from_code(int(e.unique_codes(6)[released[place].unique]), 6))
        for place in (1942, 1056, 1634, 1295, 760, 1826)
    ]
    assert [true[index].form for index in released_order(6)[:6]] == [canonical(graph)[0] for graph in wanted]
    assert sorted(released_order(6)) == list(range(2201))


def test_renamings_are_all_there() -> None:
    assert len({tuple(row) for row in e.renamings(5).tolist()}) == factorial(5)
