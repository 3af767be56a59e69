"""The verb that judges a file of completions."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

MOST_TOLD = 10
"""Malformed lines that are told one by one."""


def score(
    task: Annotated[str, typer.Argument(help="corr2cause, gsm8k, math, metamathqa, humaneval, mbpp, ...")],
    file: Annotated[Path, typer.Argument(help='JSON lines {"row": {...}, "completion": "..."}')],
    out: Annotated[Path | None, typer.Option(help="write the lines here; else to standard output")] = None,
) -> None:
    """Judge a file of completions, whoever made them: correct, parsed, reason for each line."""
    from pipeline.scoring import score_file  # the task's engine is not for those who only submit

    totals = score_file(task, file, out)
    for number, error in totals.malformed[:MOST_TOLD]:
        print(f"line {number}: {error}", file=sys.stderr)
    if len(totals.malformed) > MOST_TOLD:
        print(f"... and {len(totals.malformed) - MOST_TOLD:,} malformed lines more", file=sys.stderr)
    counts = totals.verdicts
    print(
        f"{counts[True]:,} correct, {counts[False]:,} incorrect, {counts[None]:,} cannot be graded; "
        f"{totals.unparsable:,} without an answer; {len(totals.malformed):,} malformed: {out or 'standard output'}",
        file=sys.stderr,
    )
    if totals.malformed:
        raise typer.Exit(1)
