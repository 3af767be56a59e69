"""Corr2Cause rows for every part of a run: training stages, dev and test, from the generator, files or the hub."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import get_args

import numpy as np

from pipeline.causal.equivalence import canonical
from pipeline.causal.generate import Row
from pipeline.causal.relations import Hypothesis, Relation
from pipeline.causal.solver import answer, solve
from pipeline.causal.splits import Split, class_name, split_of_name
from pipeline.causal.text import read_row, template, write_hypothesis, write_premise
from pipeline.causal.wording import COMPACT, RELEASED
from pipeline.errors import UserError
from pipeline.recipe_data import Data
from pipeline.tasks.generated import DEFAULT_ROWS, generate, split_for
from pipeline.tasks.source import is_file_source, is_folder_source, read_csv, read_folder
from pipeline.training.hub import DEFAULT_REVISION, Item


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


def generated(data: Data, training: list[str], seed: int) -> Parts:
    """Rows from the generator; every part has its own stream of random numbers."""
    names = ["dev", "test", *training]
    return Parts({name: generate(data, name, seed, index) for index, name in enumerate(names)})


def from_source(data: Data, training: list[str], seed: int) -> Parts:
    """Rows of a file (split here by equivalence class), or of a folder or hub data set (its own test stays test)."""
    parts = Parts()
    pools = {split: list(rows) for split, rows in _pools(data, parts).items()}
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
        parts.rows[name] = _choose(pools[split_for(name)], data.rows.get(name), share, rng)
        if name in training and data.relabel:
            parts.rows[name] = [relabelled(row, rng) for row in parts.rows[name]]
        if name in DEFAULT_ROWS and not any(row.label for row in parts.rows[name]):
            for _ in parts.rows[name]:
                parts.leave_out(f"{name} rows of a source that has no valid one")
            parts.rows[name] = generate(data, name, seed, index)
            parts.notes.append(f"the source has no valid row of a {name} class: {name} rows are generated")
    return parts


def _pools(data: Data, parts: Parts) -> dict[Split, Iterator[Row]]:
    """The rows of a source by set."""
    if is_folder_source(data.source):
        folder = Path(data.source)
        return {split: _usable(read_folder(folder, split), data, parts) for split in get_args(Split)}
    if not is_file_source(data.source):
        named: dict[Split, str] = {"train": "train", "dev": "validation", "test": "test"}
        return {
            split: _usable(hub_rows(data.source, name, data.revision), data, parts) for split, name in named.items()
        }
    pools: dict[Split, list[Row]] = {split: [] for split in get_args(Split)}
    for row in _usable(read_csv(Path(data.source)), data, parts):
        pools[split_of_name(row.mec)].append(row)
    return {split: iter(rows) for split, rows in pools.items()}


def relabelled(row: Row, rng: np.random.Generator) -> Row:
    """The same row with the letters of its variables exchanged at random."""
    parsed = read_row(row.input)
    names = parsed.premise.names
    places = rng.permutation(len(names)).tolist()
    stated = []
    for x, y, given in parsed.premise.independences:
        x, y = sorted((places[x], places[y]))
        stated.append((x, y, tuple(sorted(places[z] for z in given))))
    asked = parsed.hypothesis
    x, y = places[asked.x], places[asked.y]
    if asked.relation > Relation.INDIRECT:
        x, y = sorted((x, y))
    wording = COMPACT if parsed.premise.compact else RELEASED
    phrase = int(rng.integers(len(RELEASED.hypotheses[asked.relation])))
    text = write_hypothesis(Hypothesis(asked.relation, x, y), names, phrase)
    premise = write_premise(sorted(stated), names, wording)
    return replace(row, premise=premise, hypothesis=text, template=template(text))


def hub_rows(source: str, split: str, revision: str | None) -> Iterator[tuple[int, str, int]]:
    """(row, input, label) of one split of a hub data set that is in the cache. Raises UserError when it is not."""
    from datasets import load_dataset

    folder = Item("dataset", source, revision or DEFAULT_REVISION, "data.source").folder(os.environ)
    try:
        rows = load_dataset(str(folder), split=split)
    except (OSError, ValueError) as error:
        raise UserError(
            "cannot load the data set", value=source, where=f"data.source ({str(error)[:150]})",
            do="check the name and `prefetch` it, or give a CSV file",
        ) from error  # fmt: skip
    for index, row in enumerate(rows):
        yield index, row["input"], row["label"]


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
            parts.leave_out("no DAG satisfies the premise, or the answer is not settled")
        else:
            yield labelled(row, label, data)


def labelled(row: Row, released: int, data: Data) -> Row:
    """A row that `read` gave, with the label that the recipe asks for."""
    return replace(row, label=released) if data.labels == "released" else row


def read(text: str, label: int) -> Row:
    """A Row from the released input text, with the exact label; `mec` is empty where there is none."""
    parsed = read_row(text)
    premise, _, hypothesis = text.strip().removeprefix("Premise:").partition("\nHypothesis:")
    n = len(parsed.premise.names)
    row = Row(premise.strip(), hypothesis.strip(), label, n, template(hypothesis.strip()), "")
    solution = answer(parsed)
    if solution.verdict in ("contradictory", "undecided"):
        return row
    return replace(row, label=solution.label, mec=class_name(canonical(solve(parsed.premise))[0]))


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
