"""Corr2Cause rows for every part of a run: training stages, dev and test, from the generator, a CSV file or the hub."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import numpy as np

from pipeline.causal import generate, implied, relations
from pipeline.causal.classes import MOST, class_of, classes
from pipeline.causal.generate import Row
from pipeline.causal.solver import solve
from pipeline.causal.splits import Split, split_of
from pipeline.causal.text import read_row, template
from pipeline.errors import UserError
from pipeline.recipe import Data
from pipeline.tasks.source import is_file_source, read_csv

DEFAULT_ROWS = {"dev": 500, "test": 1000}
DEFAULT_TRAINING_ROWS = 10000
"""Rows of the generator where the recipe names no number; a file or the hub then gives all it has."""


@dataclass
class Parts:
    """Rows by part (stage names, `dev`, `test`) and what was left out on the way, by reason."""

    rows: dict[str, list[Row]] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def leave_out(self, reason: str) -> None:
        """Count one row that is not used."""
        self.left_out[reason] = self.left_out.get(reason, 0) + 1


def load_rows(data: Data, training: list[str], seed: int) -> Parts:
    """The rows of every part. No class of the test rows, under any renaming, is in dev; none of either in training.

    Raises UserError for a source that is missing, broken or without a row for some part.
    """
    parts = generated(data, training, seed) if data.source == "generated" else from_source(data, training, seed)
    for name, rows in parts.rows.items():
        if not rows:
            raise UserError(
                f"no rows are left for {name}", value=parts.left_out, where=f"data.source {data.source}",
                do="give a source with more classes, or change data.min_variables and data.max_variables",
            )  # fmt: skip
    return parts


def variable_mix(data: Data) -> list[int]:
    """64 numbers of variables in the proportions in which rows are drawn.

    Weights are the square roots of how many rows the enumeration has: nearly all would have the most variables else.
    """
    span = range(data.min_variables, data.max_variables + 1)
    weights = np.sqrt([len(relations.hypotheses(n)) * sum(each.size for each in classes(n)) for n in span])
    counts = np.maximum(1, np.round(64 * weights / weights.sum())).astype(int)
    return [n for n, count in zip(span, counts, strict=True) for _ in range(count)]


def generated(data: Data, training: list[str], seed: int) -> Parts:
    """Rows from the generator; every part has its own stream of random numbers."""
    names = ["dev", "test", *training]
    return Parts({name: _generate(data, name, [seed, index]) for index, name in enumerate(names)})


def _generate(data: Data, name: str, seed: list[int]) -> list[Row]:
    split = _split_for(name)
    count = data.rows.get(name) or DEFAULT_TRAINING_ROWS
    numbers = [n for n in variable_mix(data) if any(split_of(each.form) == split for each in classes(n))]
    rng = np.random.default_rng(seed)
    if split != "train":
        count = _held_out_count(data, name, split, numbers)
        return list(islice(_distinct(generate.stream(split, numbers, rng)), count)) if count else []
    if data.balance is None:
        return list(islice(generate.stream(split, numbers, rng), count))
    return list(islice(_with_share(generate.stream(split, numbers, rng, "label"), data.balance, rng), count))


def _held_out_count(data: Data, name: str, split: Split, numbers: list[int]) -> int:
    """How many dev or test rows: as many as asked for, or the default where there are so many different ones.

    Raises UserError when more are asked for than the held-out classes have.
    """
    there = sum(generate.available(split, numbers)) if numbers else 0
    wanted = data.rows.get(name)
    if wanted is not None and wanted > there:
        raise UserError(
            f"data.rows.{name} asks for {wanted} different rows; the {split} classes have", value=there, where="data",
            do="ask for fewer, or raise data.max_variables",
        )  # fmt: skip
    return wanted or min(DEFAULT_ROWS[name], there)


def _with_share(rows: Iterable[Row], share: float, rng: np.random.Generator) -> Iterator[Row]:
    """Of rows that are half valid, so many that `share` of them is."""
    for row in rows:
        if rng.random() * max(share, 1 - share) < (share if row.label else 1 - share):
            yield row


def _split_for(name: str) -> Split:
    """The split that a part draws on: training stages share `train`."""
    return "dev" if name == "dev" else "test" if name == "test" else "train"


def _distinct(rows: Iterable[Row]) -> Iterator[Row]:
    seen: set[str] = set()
    for row in rows:
        if row.input not in seen:
            seen.add(row.input)
            yield row


def from_source(data: Data, training: list[str], seed: int) -> Parts:
    """Rows of a CSV file (split here by equivalence class) or of a hub data set (its own test rows stay test)."""
    parts = Parts()
    pools: dict[Split, list[Row]] = {"train": [], "dev": [], "test": []}
    if is_file_source(data.source):
        for row in _usable(read_csv(Path(data.source)), data, parts):
            pools[class_split(row)].append(row)
    else:
        for split, name in (("train", "train"), ("dev", "validation"), ("test", "test")):
            pools[split] = list(_usable(hub_rows(data.source, name), data, parts))  # type: ignore[index]
    forbidden: set[str] = set()
    order: tuple[Split, ...] = ("test", "dev", "train")
    for split in order:
        kept = [row for row in pools[split] if row.mec not in forbidden]
        for _ in range(len(pools[split]) - len(kept)):
            parts.leave_out("premise stands in a held-out set, under some renaming")
        pools[split] = kept
        forbidden |= {row.mec for row in kept}
    rng = np.random.default_rng(seed)
    for index, name in enumerate(["dev", "test", *training]):
        share = data.balance if name in training else None
        parts.rows[name] = _choose(pools[_split_for(name)], data.rows.get(name), share, rng)
        if name in DEFAULT_ROWS and not any(row.label for row in parts.rows[name]):
            for _ in parts.rows[name]:
                parts.leave_out(f"{name} rows of a source that has no valid one")
            parts.rows[name] = _generate(data, name, [seed, index])
            parts.notes.append(f"the source has no valid row of a {name} class: {name} rows are generated")
    return parts


def hub_rows(source: str, split: str) -> Iterator[tuple[int, str, int]]:
    """(row, input, label) of one split of a hub data set. Raises UserError when it cannot be had."""
    from datasets import load_dataset

    try:
        rows = load_dataset(source, split=split)
    except (OSError, ValueError) as error:
        raise UserError(
            "cannot load the data set", value=source, where=f"data.source ({str(error)[:150]})",
            do="check the name; without network bring it into the cache first (HF_HOME), or give a CSV file",
        ) from error  # fmt: skip
    for index, row in enumerate(rows):
        yield index, row["input"], row["label"]


def class_split(row: Row) -> Split:
    """The set that a row's class belongs to."""
    return split_of(classes(row.num_variables)[int(row.mec.partition(":")[2])].form)


def _usable(rows: Iterable[tuple[int, str, int]], data: Data, parts: Parts) -> Iterator[Row]:
    """Rows in the range of variables, read and relabelled as the recipe says; others are counted."""
    for index, text, label in rows:
        try:
            row = read(text, label)
        except UserError as error:
            raise UserError(f"row {index}: {error.what}", value=error.value, where=data.source, do=error.do) from error
        if not data.min_variables <= row.num_variables <= data.max_variables:
            parts.leave_out("number of variables outside the recipe's range")
        elif row.mec == "":
            parts.leave_out("no DAG satisfies the premise")
        else:
            yield labelled(row, label, data)


def labelled(row: Row, released: int, data: Data) -> Row:
    """A row that `read` gave, with the label that the recipe asks for."""
    return replace(row, label=released) if data.labels == "released" else row


def read(text: str, label: int) -> Row:
    """A Row from the released input text, with the exact label; `mec` is empty when no DAG satisfies the premise."""
    parsed = read_row(text)
    premise, _, hypothesis = text.strip().removeprefix("Premise:").partition("\nHypothesis:")
    n = len(parsed.premise.names)
    row = Row(premise.strip(), hypothesis.strip(), label, n, template(hypothesis.strip()), "")
    if n > MOST:
        return row
    try:
        graph = solve(parsed.premise)
    except UserError:
        return row
    return replace(row, label=implied.label(graph, parsed.hypothesis), mec=class_of(graph).name)


def _choose(pool: list[Row], count: int | None, share: float | None, rng: np.random.Generator) -> list[Row]:
    """A random sample without repeats with a share of valid rows; fewer rows where the pool has not enough."""
    shuffled = [pool[i] for i in rng.permutation(len(pool))]
    if share is None:
        return shuffled[:count]
    valid = [row for row in shuffled if row.label == 1]
    other = [row for row in shuffled if row.label == 0]
    total = int(min(len(valid) / share, len(other) / (1 - share), len(pool) if count is None else count))
    yes = round(total * share)
    chosen = valid[:yes] + other[: total - yes]
    return [chosen[i] for i in rng.permutation(len(chosen))]
