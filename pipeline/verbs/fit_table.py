"""How a fit is shown: one table with a column a stage, lines below it, JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.table import Table

from pipeline.fit.calibration import Observation, own_error
from pipeline.fit.duration import Duration
from pipeline.fit.memory import ORDER
from pipeline.fit.recipe_fit import GIB, StageFit, disk_of_run
from pipeline.recipe import Recipe


def fit_table(fits: list[StageFit]) -> Table:
    """GiB of one GPU by term, then how the stage is run, what else it needs and how long it takes."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("GiB of one GPU")
    for each in fits:
        table.add_column(each.work.name, justify="right")
    for term in ORDER:
        if any(each.choice.memory.terms.get(term) for each in fits):
            table.add_row(term, *(f"{each.choice.memory.terms.get(term, 0.0) / GIB:.2f}" for each in fits))
    table.add_row("total", *(_total(each) for each in fits))
    table.add_row(
        "the GPU has", *(f"{each.card.usable / GIB:.2f}" if each.card else "-" for each in fits), end_section=True
    )
    for name, values in _rest(fits).items():
        table.add_row(name, *values)
    return table


def _total(each: StageFit) -> str:
    colour = {True: "green", False: "red" if not each.mean_fits else "yellow", None: "default"}[each.choice.fits]
    return f"[{colour}]{each.choice.memory.total / GIB:.2f}[/]"


def _rest(fits: list[StageFit]) -> dict[str, list[str]]:
    return {
        "peak in": [each.choice.memory.phase for each in fits],
        "GPUs x micro x accum.": [_batch(each) for each in fits],
        "checkpointing": [_checkpointing(each) for each in fits],
        "longest row, tokens": [_tokens(each) for each in fits],
        "host GiB (asked for)": [f"{each.host / GIB:.0f} ({each.host_asked / GIB:.0f})" for each in fits],
        "disk GiB": [f"{each.disk[0] / GIB:.1f}" for each in fits],
        "hours": [_span(each.duration, 3600) for each in fits],
        "GPU-hours": [_span(each.gpu_hours, 1) for each in fits],
    }


def _batch(each: StageFit) -> str:
    setting = each.choice.setting
    return f"{each.work.world} x {setting.micro} x {setting.accumulation}"


def _checkpointing(each: StageFit) -> str:
    return ("yes" if each.choice.setting.checkpointing else "no") if each.work.trains else "-"


def _tokens(each: StageFit) -> str:
    lengths, new = each.work.lengths, each.work.new_tokens
    return f"{'' if lengths.known else '~'}{lengths.longest}" + (f" + {new}" if new else "")


def _span(found: Duration | None, unit: float) -> str:
    return "-" if found is None else f"{found.likely / unit:.1f} ({found.low / unit:.1f}-{found.high / unit:.1f})"


def fit_lines(fits: list[StageFit]) -> list[str]:
    """What was chosen, what does not fit and what would, what else is short; a line each."""
    told = [line for each in fits for line in _lines_of(each)]
    return [*told, f"disk for checkpoints and models, at most: {disk_of_run(fits) / GIB:.1f} GiB"]


def _lines_of(each: StageFit) -> list[str]:
    name, told = each.work.name, []
    if each.card is None:
        told.append(f"{name}: has room on " + (", ".join(each.rooms()) or "no known card"))
    if each.changed:
        written = each.choice.written.total / GIB
        told.append(f"{name}: does not fit {each.card and each.card.name} as the recipe says ({written:.1f} GiB)")
    told += [f"{name}: chosen, results stay the same: {name}.{key}={value}" for key, value in each.changed.items()]
    if each.card and each.choice.fits is False:
        rows = "rows of mean length do, the longest may not" if each.mean_fits else "not at all as it is"
        told.append(f"{name}: does not fit {each.card.name} ({rows})")
    told += [f"{name}: would fit: {offer.change} ({offer.memory.total / GIB:.1f} GiB)" for offer in each.proposals]
    if each.host > each.host_asked:
        told.append(f"{name}: resources.{name}.memory is less than loading the model takes ({each.host / GIB:.0f} GiB)")
    return told


def error_line(seen: list[Observation]) -> str:
    """How far predictions were off where runs recorded their peaks."""
    error = own_error(seen)
    if not error["runs"]:
        return "no run has recorded a peak here yet: 5 % fragmentation and a typical CUDA context are assumed"
    return (
        f"{error['runs']:.0f} recorded peaks: predictions were off by {100 * error['median']:.1f} % (median), "
        f"{100 * error['largest']:.1f} % at most; corrected by the runs on this GPU"
    )


def as_tree(recipe: Recipe, fits: list[StageFit], seen: list[Observation]) -> dict[str, Any]:
    """The fit as JSON: bytes and seconds."""
    stages = [stage_tree(each) for each in fits]
    return {"recipe": recipe.name, "stages": stages, "disk_bytes": disk_of_run(fits), "own_error": own_error(seen)}


def stage_tree(each: StageFit) -> dict[str, Any]:
    """One stage's fit as JSON."""
    memory = each.choice.memory
    return {
        "stage": each.work.name,
        "gpu": each.card.name if each.card else None,
        "fits": each.choice.fits,
        "fits_at_mean_length": each.mean_fits,
        "fits_cards": each.rooms(),
        "peak_in": memory.phase,
        "bytes": memory.terms,
        "total_bytes": memory.total,
        "total_bytes_as_written": each.choice.written.total,
        "usable_bytes": each.card.usable if each.card else None,
        "setting": {"gpus": each.work.world, **asdict(each.choice.setting)},
        "chosen": each.changed,
        "would_fit": [{"change": offer.change, "total_bytes": offer.memory.total} for offer in each.proposals],
        "tokens": asdict(each.work.lengths),
        "host_bytes": each.host,
        "disk_bytes": each.disk[0],
        "seconds": asdict(each.duration) if each.duration else None,
        "gpu_hours": asdict(each.gpu_hours) if each.gpu_hours else None,
    }
