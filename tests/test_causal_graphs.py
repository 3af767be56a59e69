"""Graphs: how many there are, and what renaming and ordering do."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.causal.graphs import (
    along,
    direct,
    from_code,
    relabel,
    skeleton,
    to_code,
    topological_orders,
    transpose,
    undirected,
)


@given(code=st.integers(0, 2**10 - 1), order=st.permutations(range(5)))
def test_a_renamed_dag_is_the_same_dag(code: int, order: list[int]) -> None:
    dag = from_code(code, 5)
    renamed = relabel(dag, order)
    assert to_code(dag) == code
    assert transpose(transpose(renamed)) == renamed
    assert all(
        along(renamed, each) == from_code(to_code(along(renamed, each)), 5) for each in topological_orders(renamed)
    )


def test_a_cycle_has_no_topological_order() -> None:
    assert list(topological_orders((0b010, 0b100, 0b001))) == []
    assert list(topological_orders((0b110, 0, 0))) == [(0, 1, 2), (0, 2, 1)]


def test_directing_an_undirected_edge() -> None:
    joined = skeleton((0b010, 0b100, 0))
    assert joined == (0b010, 0b101, 0b010)
    assert direct(joined, 2, 1) == (0b010, 0b001, 0b010)
    assert undirected(direct(joined, 2, 1)) == ((0, 1), (1, 0))
