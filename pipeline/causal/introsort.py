"""The order in which numpy's scalar introsort leaves equal keys: the released files were sorted by it, unstably."""

from __future__ import annotations

from collections.abc import Sequence

SMALL = 15
"""Parts up to one element more than this are sorted by insertion."""


def argsort(keys: Sequence[int]) -> list[int]:
    """Indices that sort `keys`, equal ones in the order of `numpy.argsort(kind="quicksort")` without vector units.

    Median of three, the larger part put off (Musser 1997). The fallback to heapsort at great depth is left out:
    parts of equal keys are halved, so keys with few values never come near it.
    """
    order = list(range(len(keys)))
    waiting = [(0, len(keys) - 1)]
    while waiting:
        low, high = waiting.pop()
        while high - low > SMALL:
            middle = _partition(keys, order, low, high)
            if middle - low < high - middle:
                waiting.append((middle + 1, high))
                high = middle - 1
            else:
                waiting.append((low, middle - 1))
                low = middle + 1
        _insert(keys, order, low, high)
    return order


def _partition(keys: Sequence[int], order: list[int], low: int, high: int) -> int:
    """Put the median of three keys in its place, smaller ones before it; its place."""
    middle = low + (high - low >> 1)
    if keys[order[middle]] < keys[order[low]]:
        order[middle], order[low] = order[low], order[middle]
    if keys[order[high]] < keys[order[middle]]:
        order[high], order[middle] = order[middle], order[high]
    if keys[order[middle]] < keys[order[low]]:
        order[middle], order[low] = order[low], order[middle]
    pivot = keys[order[middle]]
    order[middle], order[high - 1] = order[high - 1], order[middle]
    up, down = low, high - 1
    while True:
        up += 1
        while keys[order[up]] < pivot:
            up += 1
        down -= 1
        while pivot < keys[order[down]]:
            down -= 1
        if up >= down:
            break
        order[up], order[down] = order[down], order[up]
    order[up], order[high - 1] = order[high - 1], order[up]
    return up


def _insert(keys: Sequence[int], order: list[int], low: int, high: int) -> None:
    for place in range(low + 1, high + 1):
        taken = order[place]
        to = place
        while to > low and keys[taken] < keys[order[to - 1]]:
            order[to] = order[to - 1]
            to -= 1
        order[to] = taken
