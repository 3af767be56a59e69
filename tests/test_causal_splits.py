"""Splits: whole classes up to renaming, with every class of the released test set in test."""

from __future__ import annotations

import random
from typing import get_args

import pytest

from pipeline.causal.classes import classes
from pipeline.causal.equivalence import canonical
from pipeline.causal.graphs import relabel
from pipeline.causal.splits import Split, classes_of, released_test_size, split_of

RELEASED_TEST = {2: {1}, 3: {2, 3, 4}, 4: {11, 5}, 5: {62, 72, 26, 20, 113, 128, 96, 55, 68}}


@pytest.mark.parametrize(("n", "train", "dev", "test"), [(2, 1, 0, 1), (3, 2, 0, 3), (4, 14, 2, 4), (5, 100, 14, 28)])
def test_sizes(n: int, train: int, dev: int, test: int) -> None:
    sets = {split: {each.index for each in classes_of(split, n)} for split in get_args(Split)}
    assert {split: len(each) for split, each in sets.items()} == {"train": train, "dev": dev, "test": test}
    assert set.union(*sets.values()) == set(range(len(classes(n))))


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_released_test_classes_are_test(n: int) -> None:
    assert released_test_size(n) == len(RELEASED_TEST[n])
    assert RELEASED_TEST[n] <= {each.index for each in classes_of("test", n)}


def test_a_renamed_class_stays_in_its_set() -> None:
    rng = random.Random(0)
    for split in get_args(Split):
        for each in classes_of(split, 5):
            renamed = relabel(each.cpdag, rng.sample(range(5), 5))
            assert split_of(canonical(renamed)[0]) == split
