"""What SFT learns to say about its rows: the engine's reasoning, or the right answers of a teacher."""

from __future__ import annotations

import multiprocessing
import random
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

from pipeline.causal.trace import Style
from pipeline.errors import UserError
from pipeline.recipe import Recipe
from pipeline.tasks.corr2cause import worked
from pipeline.tasks.rows import Parts
from pipeline.tasks.teacher import COUNTED, taught
from pipeline.training.ranks import cpus_at_hand

STYLES: dict[str, tuple[Style, ...]] = {
    "trace": ("full",), "short": ("short",), "answer": ("answer",), "mixed": ("full", "answer"),
}  # fmt: skip
"""Of which styles a row's completion may be."""
CHUNK = 1000
"""Rows that a process works on at once; fewer than two such chunks are worked here."""
PROGRESS_SECONDS = 5.0

Pair = tuple[str, str]
"""A premise and a hypothesis."""


def sft_stages(recipe: Recipe) -> list[str]:
    """The training stages that learn from completions."""
    return [entry.name for entry in recipe.stages if entry.kind == "sft"]


def add_completions(recipe: Recipe, parts: Parts) -> tuple[dict[str, list[str]], dict[str, Any]]:
    """(a completion for each row of each SFT stage, figures for the metrics); rows without one are taken out.

    With a teacher the SFT rows are those that it answered rightly, whatever they were before.
    """
    if recipe.data.completions == "teacher":
        return taught_completions(recipe, parts)
    return {name: worked_completions(recipe, parts, name) for name in sft_stages(recipe)}, {}


def taught_completions(recipe: Recipe, parts: Parts) -> tuple[dict[str, list[str]], dict[str, Any]]:
    """The teacher's right answers for every SFT stage, as many as `data.rows` asks for, and the counts of all."""
    held_out = {row.mec for name in ("dev", "test") for row in parts.rows[name]}
    found = taught(recipe.data, held_out)
    counts = {key: found.counts[key] for key in ("predictions", *COUNTED, "differs_from_file")}
    print("teacher: " + ", ".join(f"{count} {key}" for key, count in counts.items()), flush=True)
    for fate in COUNTED[1:]:
        if counts[fate]:
            parts.left_out[f"teacher: {fate}"] = counts[fate]
    completions = {}
    for name in sft_stages(recipe):
        parts.rows[name] = found.rows[: recipe.data.rows.get(name)]
        completions[name] = found.completions[: recipe.data.rows.get(name)]
    return completions, {"teacher": counts}


def worked_completions(recipe: Recipe, parts: Parts, name: str) -> list[str]:
    """A completion for each row of a part; rows whose given label the reasoning contradicts are taken out."""
    rows = parts.rows[name]
    draw, pairs = random.Random(recipe.seed), [(row.premise, row.hypothesis) for row in rows]
    styles = [draw.choice(STYLES[recipe.data.completions]) for _ in rows]
    found = {
        style: work_all({pair for pair, its in zip(pairs, styles, strict=True) if its == style}, style, name)
        for style in sorted(set(styles))
    }
    kept, completions = [], []
    for row, pair, style in zip(rows, pairs, styles, strict=True):
        completion = found[style][pair]
        if completion.endswith("Yes") != (row.label == 1):
            parts.leave_out(f"{name}: the released label contradicts the reasoning")
            continue
        kept.append(row)
        completions.append(completion)
    if not kept:
        raise UserError("no row is left to learn from", value=name, where="data", do="use data.labels: corrected")
    parts.rows[name] = kept
    return completions


def work_all(pairs: set[Pair], style: Style, name: str) -> dict[Pair, str]:
    """The worked completion of every pair, by one process for each CPU core; one premise goes to one of them."""
    ordered = sorted(pairs)
    chunks = [ordered[start : start + CHUNK] for start in range(0, len(ordered), CHUNK)]
    found: dict[Pair, str] = {}
    told = time.monotonic()
    for chunk, texts in zip(chunks, _worked_chunks(chunks, style), strict=True):
        found.update(zip(chunk, texts, strict=True))
        if time.monotonic() - told > PROGRESS_SECONDS:
            told = time.monotonic()
            print(f"{name}: {len(found)} of {len(ordered)} completions worked", flush=True)
    return found


def _worked_chunks(chunks: Sequence[list[Pair]], style: Style) -> Iterator[list[str]]:
    """Started anew, not forked: this process may have threads (numpy's, the tokenizers')."""
    processes = min(cpus_at_hand(), len(chunks))
    if processes < 2:
        yield from map(partial(_work, style=style), chunks)
        return
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(partial(_work, style=style), chunks)


def _work(chunk: list[Pair], style: Style) -> list[str]:
    return [worked(premise, hypothesis, style) for premise, hypothesis in chunk]
