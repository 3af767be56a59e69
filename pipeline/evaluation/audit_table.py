"""The findings of an audit as tables to read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.table import Table

from pipeline.evaluation.baselines import SHOWN


def audit_tables(found: dict[str, Any]) -> Iterator[Table | str]:
    """A heading and tables for each file, then what the files share."""
    for each in found["files"]:
        yield from _file(each)
    for each in found["leaks"]:
        told = ", ".join(f"{count:,} {name}" for name, count in each.items() if name != "files")
        yield f"{each['files'][0]} and {each['files'][1]} share: {told}"


def _file(found: dict[str, Any]) -> Iterator[Table | str]:
    rows = found["rows"]
    yield f"\n{found['file']}: {rows:,} rows on {found['premises']:,} premises, {found['valid']:,} valid"
    if found["unreadable"]["count"]:
        yield f"{found['unreadable']['count']:,} rows cannot be read; the first: " + "; ".join(
            found["unreadable"]["first"]
        )
    impossible = found["impossible"]
    yield f"no DAG satisfies {impossible['premises']:,} premises ({impossible['rows']:,} rows)"
    repeated = found["duplicates"]
    yield f"repeated rows: {repeated['same text']:,} as text, {repeated['same meaning']:,} in meaning"
    yield _table(
        "labels against the solver, by reading of the relations",
        ("reading", "rows settled", "labels that differ", "F1 of the solver against the labels"),
        [
            (name, f"{each['settled']:,}", f"{each['disagree']:,}", "-" if each["f1"] is None else f"{each['f1']:.4f}")
            for name, each in found["labels"].items()
        ],
    )
    yield _table(
        "rows of released premises: labels that change as the bugs of the generator are mended",
        ("mended", "labels that differ"),
        [(name, f"{each['count']:,}") for name, each in found["released bugs"].items()],
    )
    yield _table("templates", ("template", "rows", "valid", "share"), _shares(found["templates"]))
    yield _table("order of the letters", ("causes", "rows", "valid", "share"), _shares(found["letters"]))
    yield _table(
        "what answers without reasoning",
        ("shortcut", *SHOWN),
        [(name, *(f"{each[key]:.4f}" for key in SHOWN)) for name, each in found["shortcuts"].items()],
    )
    lengths = found["lengths"]
    if lengths:
        yield "tokens: " + ", ".join(f"{name} {value:,}" for name, value in lengths.items())


def _shares(found: dict[str, dict[str, int]]) -> list[tuple[str, ...]]:
    return [
        (name, f"{each['rows']:,}", f"{each['valid']:,}", f"{each['valid'] / max(each['rows'], 1):.3f}")
        for name, each in found.items()
    ]


def _table(title: str, headings: tuple[str, ...], rows: list[tuple[str, ...]]) -> Table:
    table = Table(title=title, box=None, pad_edge=False, padding=(0, 2, 0, 0), title_justify="left")
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="right" if place else "left")
    for row in rows:
        table.add_row(*row)
    return table
