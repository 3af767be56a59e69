"""Verbs that hold results against others: compare, gate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table

from pipeline import show
from pipeline.evaluation.schema import ModelResult
from pipeline.evaluation.summary import baseline_name, paired_line
from pipeline.run import RunDir
from pipeline.verbs.arguments import RunArgument, open_run

if TYPE_CHECKING:  # they bring numpy, which is not for those who only submit
    from pipeline.evaluation.runs import SameRows, SideBySide


def compare(
    names: Annotated[list[str], typer.Argument(help="names of runs")],
    out: Annotated[Path | None, typer.Option(help="the page; evaluation_results/compare.html by default")] = None,
) -> None:
    """Put several runs on one page: results, differences, settings."""
    compare_runs([open_run(name)[0] for name in names], out)


def gate(
    name: RunArgument,
    minimum: Annotated[list[str] | None, typer.Option("--min", help="such as f1=0.6; may be repeated")] = None,
    base: Annotated[str | None, typer.Option("--no-regression", help="a model of the run, or another run")] = None,
    model: Annotated[str | None, typer.Option(help="the model; that of the last training stage by default")] = None,
) -> None:
    """End with code 1 unless a run's result is good enough, and no worse than another."""
    hold_gate(open_run(name)[0], minimum or [], base, model, lambda other: open_run(other)[0])


def compare_runs(runs: Sequence[RunDir], out: Path | None, missing: Mapping[str, str] | None = None) -> SideBySide:
    """Print the runs' models in a table for each test set, and write the page (beside the runs' results by default).

    `missing` names further runs that have no result, and why.
    """
    from pipeline.evaluation.runs import side_by_side
    from pipeline.evaluation.runs_page import write_page

    found = side_by_side(runs)
    found.missing.update(missing or {})
    for each in found.sets:
        show.console.print(_table(each))
        for paired in each.paired:
            show.console.print(paired_line(paired), markup=False, soft_wrap=True)
    _differing(found)
    for name, why in found.missing.items():
        show.console.print(f"{name}: {why}", markup=False, soft_wrap=True)
    page = out or runs[0].results.parent / "compare.html"
    write_page(found, page)
    show.console.print(f"page: {page}", markup=False, soft_wrap=True)
    return found


def hold_gate(
    run: RunDir, minima: Sequence[str], base: str | None, model: str | None, find: Callable[[str], RunDir]
) -> None:
    """Print every check. Raises StageFailed when one fails."""
    from pipeline.evaluation import gate as gates

    checks = gates.gate(run, minima, base, model, find)
    for check in checks:
        show.console.print(f"{'holds' if check.holds else 'FAILS'}  {check.text}", markup=False, soft_wrap=True)
    gates.fail_unless_held(checks, f"run {run.name}")


def _table(test: SameRows) -> Table:
    facts = test.sides[0].comparison.data
    table = Table(
        title=f"{facts.get('rows')} test rows over {facts.get('premises')} premises", box=box.HORIZONTALS,
        pad_edge=False, padding=(0, 1, 0, 0), title_justify="left",
    )  # fmt: skip
    for heading in ("run", "model"):
        table.add_column(heading, overflow="fold")
    table.add_column("F1 [95 %]", no_wrap=True)
    for heading in ("precision", "recall", "accuracy", "not\nparsed"):
        table.add_column(heading, justify="right", no_wrap=True)
    for side in test.sides:
        for name, model in side.comparison.models.items():
            table.add_row(side.run.name, name, *_numbers(model))
    table.add_section()
    for name, each in test.sides[0].comparison.baselines.items():
        numbers = (f"{value:.3f}" for value in (each.f1, each.precision, each.recall, each.accuracy))
        table.add_row("", baseline_name(name), *numbers, style="dim")
    return table


def _numbers(model: ModelResult) -> list[str]:
    f1 = f"{model.f1.value:.3f} \\[{model.f1.low:.3f}, {model.f1.high:.3f}]"
    return [f1, *(f"{share:.3f}" for share in (model.precision, model.recall, model.accuracy)), str(model.unparsable)]


def _differing(found: SideBySide) -> None:
    """The settings that differ, most telling where few do; all of them are on the page."""
    for key, values in list(found.settings.items())[:20]:
        told = ", ".join(f"{run} {value}" for run, value in zip(found.runs, values, strict=True))
        show.console.print(f"{key}: {told}", markup=False, soft_wrap=True)
