"""Generated rows: right labels, the stated balance, their split, no repetition."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import numpy as np
import pytest

from pipeline.causal.classes import class_of
from pipeline.causal.generate import Balance, Row, available, sample, stream
from pipeline.causal.implied import label
from pipeline.causal.solver import solve
from pipeline.causal.splits import Split, split_of
from pipeline.causal.text import read_row, template, write_premise
from pipeline.errors import UserError


def draw(split: Split, n: int, count: int, balance: Balance = "natural", seed: int = 0) -> list[Row]:
    return list(islice(stream(split, [n], np.random.default_rng(seed), balance), count))


@pytest.mark.parametrize(("split", "n"), [("train", 4), ("test", 4), ("train", 5), ("dev", 5), ("test", 5)])
def test_rows_are_what_they_say(split: Split, n: int) -> None:
    for row in draw(split, n, 300, "label"):
        parsed = read_row(row.input)
        graph = solve(parsed.premise)
        assert row.label == label(graph, parsed.hypothesis)
        assert row.mec == class_of(graph).name
        assert split_of(class_of(graph).form) == split
        assert row.num_variables == len(parsed.premise.names) == n
        assert row.template == template(row.hypothesis)
        assert row.premise == write_premise(parsed.premise.independences, parsed.premise.names)


def test_balances() -> None:
    no, yes = available("train", [5])
    natural = np.mean([row.label for row in draw("train", 5, 4000)])
    assert abs(natural - yes / (yes + no)) < 0.03
    assert 0.13 < yes / (yes + no) < 0.20
    assert abs(np.mean([row.label for row in draw("train", 5, 4000, "label")]) - 0.5) < 0.04


def test_the_order_of_the_letters_says_nothing() -> None:
    direct = [row for row in draw("train", 5, 12000, "label") if row.template in ("parent", "child")]
    rates = [np.mean([row.label for row in direct if row.template == each]) for each in ("parent", "child")]
    assert abs(rates[0] - rates[1]) < 0.06


def test_both_wordings_and_all_letters_are_used() -> None:
    rows = draw("train", 5, 2000)
    assert Counter(row.template for row in rows).keys() == {
        "parent", "child", "non-parent ancestor", "non-child descendant", "has_collider", "has_confounder"
    }  # fmt: skip


def test_the_seed_settles_the_rows() -> None:
    assert sample("dev", [4, 5], 50, seed=3) == sample("dev", [4, 5], 50, seed=3)
    assert sample("dev", [4, 5], 50, seed=3) != sample("dev", [4, 5], 50, seed=4)


def test_a_sample_repeats_nothing_and_is_half_yes() -> None:
    rows = sample("test", [3, 4, 5], 600, seed=0, balance="label")
    assert len({row.input for row in rows}) == 600
    assert sum(row.label for row in rows) == 300


def test_a_sample_may_take_all_rows_but_no_more() -> None:
    no, yes = available("test", [3])
    assert len(sample("test", [3], no + yes, seed=0)) == no + yes
    assert sum(row.label for row in sample("test", [3], 2 * yes, seed=0, balance="label")) == yes
    with pytest.raises(UserError, match="different rows"):
        sample("test", [3], 4 * (no + yes), seed=0)
    with pytest.raises(UserError, match="different rows"):
        sample("test", [3], 2 * yes + 2, seed=0, balance="label")


def test_a_set_without_a_wanted_label_is_refused() -> None:
    with pytest.raises(UserError, match="no row"):
        draw("train", 3, 1, "label")
    with pytest.raises(UserError, match="no row"):
        draw("dev", 2, 1)
