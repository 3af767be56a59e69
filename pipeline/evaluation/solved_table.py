"""The result table of tasks without classes, for the terminal. Imports nothing heavy."""

from __future__ import annotations

from rich import box
from rich.table import Table

from pipeline.evaluation.schema import Comparison, Interval, SolvedPair


def solved_table(result: Comparison) -> Table:
    """Models with accuracy (or pass@k) and intervals. At most 80 columns wide."""
    table = Table(
        title=f"{result.run}: {result.task}, test rows",
        caption="Share of right answers, 95 % bootstrap intervals over rows. An answer that cannot be found is wrong.",
        box=box.HORIZONTALS, pad_edge=False, padding=(0, 1, 0, 0), title_justify="left", caption_justify="left",
    )  # fmt: skip
    table.add_column("", overflow="fold")
    for heading in headings(result):
        table.add_column(heading, no_wrap=True)
    for heading in ("share", "rows", "not\ngraded", "not\nfound"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, model in result.solved.items():
        shown = model.pass_at.values() or [model.accuracy]
        counts = (model.rows, model.not_graded, model.unparsable)
        table.add_row(name, *map(_told, shown), f"{model.share:.3f}", *map(str, counts))
    return table


def headings(result: Comparison) -> list[str]:
    """What is given with an interval: accuracy, or pass@k for each k."""
    first = next(iter(result.solved.values()))
    return [f"pass@{k} [95 %]" for k in first.pass_at] or ["accuracy [95 %]"]


def _told(interval: Interval) -> str:
    return rf"{interval.value:.3f} \[{interval.low:.3f}, {interval.high:.3f}]"


def solved_lines(result: Comparison) -> list[str]:
    """One line a difference of accuracy, in words (better only where the interval excludes zero)."""
    return [pair_line(each) for each in result.solved_pairs.values()]


def pair_line(each: SolvedPair) -> str:
    """Two models on the same rows, in words."""
    a = each.accuracy
    return (
        f"accuracy {each.first} - {each.second}: {a.value:+.3f} [{a.low:+.3f}, {a.high:+.3f}]: {each.verdict}; "
        f"{each.fixed} rows fixed, {each.broken} broken (McNemar p {each.mcnemar_p:.2g})"
    )
