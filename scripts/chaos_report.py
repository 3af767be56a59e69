"""The figures of all rounds of chaos so far, as Markdown: what was injected, what became of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

SAME = "same result"
"""The outcome of a round that ended as the undisturbed run did."""


def report(lines: Sequence[dict[str, Any]]) -> str:
    """A sentence and a table from the results' lines; a round with two faults counts in the rows of both."""
    good = [line for line in lines if line["outcome"] == SAME]
    mended = [line for line in good if line["mended"]]
    seeds = ", ".join(str(seed) for seed in sorted({line["seed"] for line in lines}))
    told = [
        f"{len(lines)} rounds (seeds {seeds}), {len(good)} with the undisturbed result: {len(good) - len(mended)} by "
        f"themselves, {len(mended)} after `retry` or `run`; {sum(len(_hits(line)) for line in lines)} faults, "
        f"{sum(line['recoveries'] for line in lines)} recoveries (attempts after a stage's first), "
        f"{sum(line['lost_steps'] for line in lines)} steps trained again.",
        "",
        "| fault | injected | rounds | by themselves | after `retry` or `run` | went wrong | steps trained again |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind in sorted({kind for line in lines for kind in _hits(line)}):
        told.append(_row(kind, [line for line in lines if kind in _hits(line)]))
    told += [
        "",
        *(f"Round {each['round']} of seed {each['seed']}: {each['outcome']}" for each in lines if each not in good),
    ]
    return "\n".join(told).rstrip()


def _hits(line: dict[str, Any]) -> list[str]:
    """Kinds of the faults of a round that met their target in time."""
    return [fault["kind"] for fault in line["faults"] if fault["did"]]


def _row(kind: str, lines: list[dict[str, Any]]) -> str:
    count = sum(_hits(line).count(kind) for line in lines)
    good = [line for line in lines if line["outcome"] == SAME]
    mended = sum(bool(line["mended"]) for line in good)
    lost = sum(line["lost_steps"] for line in lines)
    cells = [kind, count, len(lines), len(good) - mended, mended, len(lines) - len(good), lost]
    return f"| {' | '.join(map(str, cells))} |"
