"""The result table and what the differences mean, for the terminal. Imports nothing heavy."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.table import Table

from pipeline.evaluation.schema import Comparison, Interval, parse_comparison


def result_table(comparison: dict[str, Any] | Comparison) -> Table:
    """Models with their intervals and, below a rule, the baselines on the same rows. At most 80 columns wide."""
    result = comparison if isinstance(comparison, Comparison) else parse_comparison(comparison)
    table = Table(
        title=f"{result.run}: {result.task}, test rows", caption=_caption(result), box=box.HORIZONTALS,
        pad_edge=False, padding=(0, 1, 0, 0), title_justify="left", caption_justify="left",
    )  # fmt: skip
    table.add_column("", overflow="fold")
    table.add_column("F1 [95 %]", no_wrap=True)
    for heading in ("precision", "recall", "accuracy", "rows", "not\nparsed"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, model in result.models.items():
        f1 = f"{model.f1.value:.3f} [{model.f1.low:.3f}, {model.f1.high:.3f}]"
        shares = [f"{share:.3f}" for share in (model.precision, model.recall, model.accuracy)]
        table.add_row(name, f1.replace("[", r"\["), *shares, str(model.rows), str(model.unparsable))
    table.add_section()
    for name, baseline in result.baselines.items():
        shares = [f"{share:.3f}" for share in (baseline.precision, baseline.recall, baseline.accuracy)]
        table.add_row(name.replace("_", " "), f"{baseline.f1:.3f}", *shares, style="dim")
    return table


def difference_lines(comparison: dict[str, Any] | Comparison) -> list[str]:
    """One line a difference of F1, in words: what is better only where the interval excludes zero."""
    result = comparison if isinstance(comparison, Comparison) else parse_comparison(comparison)
    return [f"F1 {first} - {second}: {_signed(interval)}: {interval.verdict}" for first, second, interval in
            differences(result)]  # fmt: skip


def differences(result: Comparison) -> list[tuple[str, str, Interval]]:
    """(model, the model it is set against, F1 of the first minus F1 of the second)."""
    pairs = {f"{first}-{second}": (first, second) for first in result.models for second in result.models}
    return [(*pairs.get(name, (name, "?")), interval) for name, interval in result.differences.items()]


def _signed(interval: Interval) -> str:
    return f"{interval.value:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


def _caption(result: Comparison) -> str:
    premises = result.data.get("premises")
    drawn = f" over {premises} premises" if premises else ""
    return f"F1 of the valid class, 95 % bootstrap intervals{drawn}; below, baselines that do not reason."
