"""Every DAG up to renaming at once, as arrays: independences, relations and equivalence classes to six variables."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise, permutations

import numpy as np
import numpy.typing as npt

from pipeline.causal.dseparation import Independence
from pipeline.causal.graphs import bits, pairs
from pipeline.causal.relations import Relation, shape

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]


@cache
def renamings(n: int) -> Ints:
    """All permutations in lexicographic order, shape (n!, n): row p calls node i by the name p[i]."""
    return np.array(list(permutations(range(n))), dtype=np.int64)


@cache
def statements(n: int) -> tuple[Independence, ...]:
    """Every (x, y, given) about n variables in the order of a premise: by x, y, then `given` as a list."""
    return tuple(
        sorted((x, y, bits(z)) for x, y in pairs(n) for z in range(1 << n) if not z >> x & 1 and not z >> y & 1)
    )


@cache
def unique_codes(n: int) -> Ints:
    """The smallest upper-triangular code of each class of DAGs equal up to renaming, ascending; shape (U,).

    Bits of a code follow `pairs(n)`, as in `graphs.from_code`.
    """
    codes = np.arange(1 << len(pairs(n)))
    smallest = np.full(len(codes), len(codes))
    edges = _edges(codes, n).astype(np.float32)
    backward = np.float32(len(codes))  # heavier than all forward edges together, so that only real codes are below it
    for start in range(0, len(renamings(n)), 128):
        order = renamings(n)[start : start + 128]
        weights = np.empty((len(pairs(n)), len(order)), dtype=np.float32)
        for bit, (i, j) in enumerate(pairs(n)):
            low, high = np.minimum(order[:, i], order[:, j]), np.maximum(order[:, i], order[:, j])
            weights[bit] = np.where(order[:, i] < order[:, j], np.exp2(_bit_of(n)[low, high]), backward)
        np.minimum(smallest, (edges @ weights).min(axis=1).astype(np.int64), out=smallest)
    return np.flatnonzero(smallest == codes)


@cache
def _bit_of(n: int) -> Ints:
    """Shape (n, n): the bit of a code that stands for the edge i -> j, i < j."""
    place = np.zeros((n, n), dtype=np.int64)
    for bit, (i, j) in enumerate(pairs(n)):
        place[i, j] = bit
    return place


def _edges(codes: Ints, n: int) -> Bools:
    """Shape (len(codes), pairs): which edges each code has."""
    has: Bools = (codes[:, None] >> np.arange(len(pairs(n)))) & 1 == 1
    return has


@dataclass(frozen=True)
class Slips:
    """The three bugs of the released generator, each present or mended."""

    names: bool = True
    """A member's relation of (x, y) is read at the names that x and y have in it, the inverse of what is meant."""
    confounders: bool = True
    """A common cause is seen only when it is a parent of the second variable."""
    descendants: bool = True
    """The search for descendants leaves a node out when the node after it was reached before."""


RELEASED = Slips()
EXACT = Slips(names=False, confounders=False, descendants=False)


def _paths_there(n: int) -> Iterator[tuple[tuple[int, ...], str, Ints]]:
    """(path, arrows, unique DAGs that have it) for every simple path.

    In codes all edges run from lower to higher nodes, so the arrows along a path are the same in every DAG.
    """
    has = _edges(unique_codes(n), n)
    for length in range(2, n + 1):
        for path in permutations(range(n), length):
            steps = [int(_bit_of(n)[min(step), max(step)]) for step in pairwise(path)]
            there = np.flatnonzero(np.logical_and.reduce(has[:, steps], axis=1))
            yield path, "".join("<>"[a < b] for a, b in pairwise(path)), there


@cache
def related(n: int, slip: bool) -> Bools:
    """Shape (U, 4, n, n): relation r holds of (x, y) in a unique DAG; with or without the slip of the confounders."""
    found = np.zeros((len(unique_codes(n)), len(Relation), n, n), dtype=np.bool_)
    for path, arrows, there in _paths_there(n):
        relation = shape(arrows)
        if relation is not None and not (slip and relation is Relation.CONFOUNDER and arrows.count(">") > 1):
            found[there, relation, path[0], path[-1]] = True
    return found


@cache
def independent(n: int, slip: bool) -> Bools:
    """Shape (U, S): statement s of `statements(n)` holds in a unique DAG; with or without the slip of descendants."""
    codes = unique_codes(n)
    masks = np.arange(1 << n)
    opened = (_descendants(codes, n, slip)[:, :, None] & masks) != 0
    connected = np.zeros((len(codes), n, n, 1 << n), dtype=np.bool_)
    for path, arrows, there in _paths_there(n):
        if path[0] < path[-1]:
            middle = [node for turn, node in enumerate(path[1:-1]) if arrows[turn : turn + 2] == "><"]
            closed = sum(1 << node for node in path if node not in middle)
            passing = np.broadcast_to(masks & closed == 0, (len(there), len(masks))).copy()
            for node in middle:
                passing &= opened[there, node]
            connected[there, path[0], path[-1]] |= passing
    x, y, given = zip(*((x, y, sum(1 << z for z in given)) for x, y, given in statements(n)), strict=True)
    separated: Bools = ~connected[:, x, y, given]
    return separated


def _descendants(codes: Ints, n: int, slip: bool) -> Ints:
    """Shape (U, n): the mask of each node and its descendants.

    The released search visits child i only when node i + 1 is not yet marked (it should ask for node i).
    """
    found = np.zeros((len(codes), n), dtype=np.int64)
    for row, code in enumerate(codes.tolist()):
        children = [[j for j in range(i + 1, n) if code >> int(_bit_of(n)[i, j]) & 1] for i in range(n)]
        for node in range(n):
            found[row, node] = _reach(children, node, 1 if slip else 0)
    return found


def _reach(children: list[list[int]], node: int, looked_at: int) -> int:
    marked = 0

    def visit(at: int) -> None:
        nonlocal marked
        marked |= 1 << at
        for child in children[at]:
            if not marked >> (child + looked_at) & 1:
                visit(child)

    visit(node)
    return marked


@dataclass(frozen=True)
class Class:
    """A Markov equivalence class, named as one of its DAGs, a unique one, is."""

    unique: int
    """Index of that DAG among the unique ones."""
    members: Ints
    """Shape (M, 2): unique DAG and renaming of each member."""


@cache
def classes_of_unique(n: int, released: bool) -> tuple[Class, ...]:
    """The class of each unique DAG: all DAGs with the same independences (with `released`, the released ones)."""
    keys = _keys(n, released)
    wanted, group = np.unique(keys[:, 0], return_inverse=True)
    place = np.searchsorted(wanted, keys)
    place[place == len(wanted)] = 0
    unique, renaming = np.nonzero(wanted[place] == keys)
    first = _first_naming(n, unique, renaming)
    unique, renaming = unique[first], renaming[first]
    belongs = place[unique, renaming]
    order = np.argsort(belongs, kind="stable")
    starts = np.searchsorted(belongs[order], np.arange(len(wanted) + 1))
    named = np.stack([unique[order], renaming[order]], axis=1)
    return tuple(Class(u, named[starts[g] : starts[g + 1]]) for u, g in enumerate(group.tolist()))


@cache
def equivalence_classes(n: int, released: bool) -> tuple[Class, ...]:
    """The classes up to renaming, each by its first unique DAG, in the order of those.

    With `released` the independences are the released ones, whose slip makes six classes more at six variables.
    """
    taken = np.zeros(len(unique_codes(n)), dtype=np.bool_)
    found: list[Class] = []
    for each in classes_of_unique(n, released):
        if not taken[each.members[:, 0]].any():
            taken[each.members[:, 0]] = True
            found.append(each)
    return tuple(found)


def _keys(n: int, released: bool) -> npt.NDArray[np.float64]:
    """Shape (U, n!): a number for the independences of each renamed DAG, equal when they are equal.

    Each statement has a random weight of 45 bits; sums of 240 of them are exact in float64. The chance that two
    different sets of statements meet in a sum is below 1e-4 at six variables; `tests` compares the classes exactly.
    """
    place = {(x, y, sum(1 << z for z in given)): s for s, (x, y, given) in enumerate(statements(n))}
    weights = np.random.default_rng(0).integers(1, 1 << 45, size=len(place)).astype(np.float64)
    order = renamings(n)
    at = np.zeros((1 << n, 1 << n), dtype=np.int64)
    for (x, y, z), s in place.items():
        at[1 << x | 1 << y, z] = s
    renamed = np.empty((len(place), len(order)))
    for (x, y, z), s in place.items():
        mask = sum((1 << order[:, node] for node in bits(z)), np.zeros(len(order), dtype=np.int64))
        renamed[s] = weights[at[1 << order[:, x] | 1 << order[:, y], mask]]
    keys: npt.NDArray[np.float64] = independent(n, released).astype(np.float64) @ renamed
    return keys


def _first_naming(n: int, unique: Ints, renaming: Ints) -> Bools:
    """Whether each (unique DAG, renaming) is the first renaming of that DAG that gives the labelled DAG it gives."""
    edges = _edges(unique_codes(n), n).astype(np.float64)
    order = renamings(n)
    weights = np.stack([np.exp2(n * order[:, i] + order[:, j]) for i, j in pairs(n)])
    named = edges @ weights
    first = np.empty(len(unique), dtype=np.bool_)
    for start in range(0, len(unique), 4096):
        part = slice(start, start + 4096)
        own = named[unique[part]]
        first[part] = (own == own[np.arange(len(own)), renaming[part]][:, None]).argmax(axis=1) == renaming[part]
    return first


def counts(n: int, each: Class, slips: Slips = EXACT) -> Ints:
    """Shape (4, n, n): in how many members of a class relation r holds of (x, y)."""
    holds = related(n, slips.confounders)[each.members[:, 0]]
    order = renamings(n)[each.members[:, 1]]
    at = order if slips.names else np.argsort(order, axis=1)
    rows = np.arange(len(order))[:, None, None]
    total: Ints = holds.transpose(0, 2, 3, 1)[rows, at[:, :, None], at[:, None, :]].sum(axis=0).transpose(2, 0, 1)
    return total
