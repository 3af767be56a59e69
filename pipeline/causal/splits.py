"""Train, dev and test: classes up to renaming, so that no premise is a renaming of one in another set."""

from __future__ import annotations

import hashlib
from functools import cache
from typing import Literal

from pipeline.causal.classes import MOST, EquivalenceClass, by_form, classes, released_order
from pipeline.causal.graphs import Graph

Split = Literal["train", "dev", "test"]


def released_test_size(n: int) -> int:
    """How many classes on n variables the released test set draws on, from the sizes of its first edition.

    Each class gave n (n - 1) ordered pairs times six hypotheses; a tenth of the rows, at most 1000, went to test
    (a half where there were less than 1000 in all, first the rows of test).
    """
    rows = n * (n - 1) * 6
    total = rows * len(classes(n))
    test = min(1000, total // 10) if total >= 1000 else total // 2
    return -(-test // rows)


@cache
def _split(n: int) -> dict[int, Split]:
    order = released_order(n)
    test = max(released_test_size(n), len(order) // 5)
    dev = test + len(order) // 10
    return {index: "test" if place < test else "dev" if place < dev else "train" for place, index in enumerate(order)}


def split_of(form: Graph) -> Split:
    """The set that a class belongs to, by its canonical form.

    In the released order the first fifth of the classes on n variables is test, or all that the released test set
    draws on where that is more; the next tenth is dev (none on two and three variables); the rest is train. Above
    six variables, where classes are not listed, a hash of the form decides in the same proportions.
    """
    return split_of_name(class_name(form))


def class_name(form: Graph) -> str:
    """Variables and index of a class, such as `5:62`; above six variables a hash of its canonical form."""
    if len(form) > MOST:
        return f"{len(form)}:{hashlib.sha256(repr(form).encode()).hexdigest()[:12]}"
    return by_form(len(form))[form].name


def split_of_name(name: str) -> Split:
    """The set that the class of this name belongs to."""
    n, _, index = name.partition(":")
    if int(n) > MOST:
        place = int(index, 16) % 10
        return "test" if place < 2 else "dev" if place < 3 else "train"
    return _split(int(n))[int(index)]


def classes_of(split: Split, n: int) -> tuple[EquivalenceClass, ...]:
    """The classes on n variables that belong to a set."""
    return tuple(each for each in classes(n) if _split(n)[each.index] == split)
