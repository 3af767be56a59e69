"""Corr2Cause rows from the generator, for every part of a run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np

from pipeline.causal import relations
from pipeline.causal.classes import MOST, classes
from pipeline.causal.generate import Row, Style, available, stream
from pipeline.causal.sources import Dags, sources
from pipeline.causal.splits import Split
from pipeline.errors import UserError
from pipeline.recipe_data import Data

DEFAULT_ROWS = {"dev": 500, "test": 1000}
DEFAULT_TRAINING_ROWS = 10000
"""Rows of the generator where the recipe names no number; a source then gives all it has."""


def variable_mix(data: Data) -> list[int]:
    """64 numbers of variables in the proportions in which rows are drawn.

    Weights are the square roots of how many rows the enumeration has: nearly all would have the most variables else.
    Above six variables, where it has none, they are those of six.
    """
    span = range(data.min_variables, data.max_variables + 1)
    known = [min(n, MOST) for n in span]
    weights = np.sqrt([len(relations.hypotheses(n)) * sum(each.size for each in classes(n)) for n in known])
    counts = np.maximum(1, np.round(64 * weights / weights.sum())).astype(int)
    return [n for n, count in zip(span, counts, strict=True) for _ in range(count)]


def generate(data: Data, name: str, seed: int, index: int) -> list[Row]:
    """The rows of one part, from its own stream of random numbers (seed, index)."""
    split = split_for(name)
    count = data.rows.get(name) or DEFAULT_TRAINING_ROWS
    dags = Dags(data.graphs.family, data.graphs.degree, data.graphs.premises, seed)
    style = Style(data.relabel is not False, data.paraphrase, data.refactorize)
    numbers = [n for n in variable_mix(data) if sources(split, n, dags)]
    rng = np.random.default_rng([seed, index])
    if split != "train":
        count = _held_out_count(data, name, sum(available(split, numbers, dags, style)))
        rows = stream(split, numbers, rng, "natural", dags, style) if count else iter(())
        return list(islice(_distinct(rows), count))
    if data.balance is None:
        return list(islice(stream(split, numbers, rng, "natural", dags, style), count))
    return list(islice(_with_share(stream(split, numbers, rng, "label", dags, style), data.balance, rng), count))


def _held_out_count(data: Data, name: str, there: int) -> int:
    """How many dev or test rows: as many as asked for, or the default where there are so many different ones.

    Raises UserError when more are asked for than the held-out classes have.
    """
    wanted = data.rows.get(name)
    if wanted is not None and wanted > there:
        raise UserError(
            f"data.rows.{name} asks for {wanted} different rows; the {name} classes have", value=there, where="data",
            do="ask for fewer, or raise data.max_variables",
        )  # fmt: skip
    return wanted or min(DEFAULT_ROWS[name], there)


def _with_share(rows: Iterable[Row], share: float, rng: np.random.Generator) -> Iterator[Row]:
    """Of rows that are half valid, so many that `share` of them is."""
    for row in rows:
        if rng.random() * max(share, 1 - share) < (share if row.label else 1 - share):
            yield row


def split_for(name: str) -> Split:
    """The split that a part draws on: training stages share `train`."""
    return "dev" if name == "dev" else "test" if name == "test" else "train"


def _distinct(rows: Iterable[Row]) -> Iterator[Row]:
    seen: set[str] = set()
    for row in rows:
        if row.input not in seen:
            seen.add(row.input)
            yield row
