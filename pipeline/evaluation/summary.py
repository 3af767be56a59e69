"""The result table and what the differences mean, for the terminal. Imports nothing heavy."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.table import Table

from pipeline.evaluation.schema import SOLVER, Comparison, Interval, Paired, parse_comparison
from pipeline.evaluation.solved_table import solved_lines, solved_table


def result_table(comparison: dict[str, Any] | Comparison) -> Table:
    """Models with their intervals and, below a rule, the baselines on the same rows. At most 80 columns wide."""
    result = comparison if isinstance(comparison, Comparison) else parse_comparison(comparison)
    if result.solved:
        return solved_table(result)
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
        table.add_row(baseline_name(name), f"{baseline.f1:.3f}", *shares, style="dim")
    return table


def set_line(name: str, comparison: Comparison) -> str:
    """A further test set in one line: F1 of each model, and of the best that answers without reasoning."""
    told = [
        f"{model} {each.f1.value:.3f} [{each.f1.low:.3f}, {each.f1.high:.3f}]"
        for model, each in comparison.models.items()
    ]
    shortcuts = {key: each.f1 for key, each in comparison.baselines.items() if key != SOLVER}
    best = max(shortcuts, key=lambda key: shortcuts[key], default=None)
    told += [f"baseline {baseline_name(best)} {shortcuts[best]:.3f}"] if best else []
    told += [f"not counted: {', '.join(comparison.refused)}"] if comparison.refused else []
    return f"F1 on {name}, {comparison.data.get('rows')} rows: " + ", ".join(told)


def baseline_name(name: str) -> str:
    """How a baseline is called in tables."""
    return "exact solver (ceiling)" if name == SOLVER else name.replace("_", " ")


def difference_lines(comparison: dict[str, Any] | Comparison) -> list[str]:
    """One line a difference of F1, in words (better only where the interval excludes zero), then the refused models."""
    result = comparison if isinstance(comparison, Comparison) else parse_comparison(comparison)
    lines = [*solved_lines(result), *(paired_line(each) for each in result.paired.values())]
    return lines + [f"not counted: {name}: {why}" for name, why in result.refused.items()]


def paired_line(each: Paired) -> str:
    """Two models on the same rows, in words."""
    return (
        f"F1 {each.first} - {each.second}: {signed(each.f1)}: {each.verdict}; {each.fixed} rows fixed, {each.broken} "
        f"broken (McNemar p {each.mcnemar_p:.2g})"
    )


def signed(interval: Interval) -> str:
    """A difference with its interval."""
    return f"{interval.value:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


def _caption(result: Comparison) -> str:
    premises = result.data.get("premises")
    drawn = f" over {premises} premises" if premises else ""
    return f"F1 of the valid class, 95 % bootstrap intervals{drawn}; below, baselines on the same rows."
