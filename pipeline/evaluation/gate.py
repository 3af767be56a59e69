"""Whether a run's result is good enough: bounds on its numbers, and no regression against another model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.errors import NeedsMissing, StageFailed, UserError
from pipeline.evaluation.compare import pair
from pipeline.evaluation.predictions import read_predictions
from pipeline.evaluation.same_rows import aligned
from pipeline.evaluation.schema import Comparison, ModelResult, read_comparison
from pipeline.evaluation.summary import signed
from pipeline.run import RunDir
from pipeline.settings import nearest

BOUNDED = (
    "f1", "f1.low", "precision", "recall", "accuracy", "balanced_accuracy", "mcc", "accuracy_published_rule",
    "true_steps",
)  # fmt: skip
"""Numbers that `--min` takes; `f1.low` is the lower end of the interval."""


@dataclass(frozen=True)
class Check:
    """One thing that a gate asks for, and whether it holds."""

    text: str
    holds: bool


def gate(
    run: RunDir, minima: Sequence[str], base: str | None, model: str | None, open_run: Callable[[str], RunDir]
) -> list[Check]:
    """Hold a model of a run (the last training stage by default) against bounds `name=value` and against `base`.

    `base` is another model of the run, or else a run, whose model of the same name is taken, or its last; it is a
    regression when the paired interval of F1 minus the base's F1 lies below zero. Raises UserError for a bound or a
    name that does not exist and for runs on other rows, NeedsMissing where there is no comparison, StageFailed for a
    model that was refused.
    """
    bounds = [_bound(text) for text in minima]
    if not bounds and base is None:
        raise UserError("a gate without anything to hold", where="the command line", do="give --min f1=0.6")
    comparison = comparison_of(run)
    name = chosen_model(run, comparison, model)
    checks = [_at_least(name, comparison.models[name], key, least) for key, least in bounds]
    return [*checks, _no_regression(run, comparison, name, base, open_run)] if base else checks


def fail_unless_held(checks: Sequence[Check], where: str) -> None:
    """Raise StageFailed naming each check that fails."""
    failed = [check.text for check in checks if not check.holds]
    if failed:
        raise StageFailed(
            "the gate does not hold", value="; ".join(failed), where=where, do="see its report, or lower the bound"
        )


def comparison_of(run: RunDir) -> Comparison:
    """The comparison of a run. Raises NeedsMissing when there is none."""
    comparison = read_comparison(run.comparison)
    if comparison is None:
        raise NeedsMissing("the run has no result", value=run.name, where=str(run.comparison), do="run its evaluation")
    return comparison


def chosen_model(run: RunDir, comparison: Comparison, name: str | None) -> str:
    """The model that is asked for, else that of the last training stage, else the last of the comparison."""
    if comparison.solved:
        raise UserError("gates and comparisons of runs need a task with classes", value=comparison.task,
                        where=str(run.comparison), do="look at its report instead")  # fmt: skip
    stages = run.read_resolved()[0].training_stages()
    wanted = name or (stages[-1] if stages else list(comparison.models)[-1])
    if wanted in comparison.refused:
        raise StageFailed(comparison.refused[wanted])
    if wanted not in comparison.models:
        raise UserError(
            "no such model in the comparison", value=wanted, where=str(run.comparison),
            do=nearest(wanted, list(comparison.models)),
        )  # fmt: skip
    return wanted


def _bound(text: str) -> tuple[str, float]:
    key, _, number = text.partition("=")
    if key not in BOUNDED:
        raise UserError("not a number of a comparison", value=key, where="--min", do=nearest(key, list(BOUNDED)))
    try:
        bound = float(number)
    except ValueError:
        bound = math.nan
    if not math.isfinite(bound):
        raise UserError("not a number", value=number, where=f"--min {key}", do="write it like f1=0.6")
    return key, bound


def _at_least(name: str, result: ModelResult, key: str, least: float) -> Check:
    """A number that is not known, or is not one at all, does not hold."""
    value = {"f1": result.f1.value, "f1.low": result.f1.low}.get(key, getattr(result, key, None))
    told = "not known" if value is None else f"{value:.4f}"
    return Check(f"{name} {key} {told}, at least {least:g} asked for", value is not None and value >= least)


def _no_regression(
    run: RunDir, comparison: Comparison, name: str, base: str, open_run: Callable[[str], RunDir]
) -> Check:
    inside = base in comparison.models or base in comparison.refused
    other = run if inside else open_run(base)
    other_comparison = comparison if inside else comparison_of(other)
    same = name if name in other_comparison.models else None
    other_name = chosen_model(other, other_comparison, base if inside else same)
    told = (f"{run.name} {name}", f"{other.name} {other_name}")
    one, two = aligned(
        told[0], read_predictions(run.predictions(name)), told[1], read_predictions(other.predictions(other_name))
    )
    resamples, seed = int(comparison.data.get("resamples", 1000)), int(comparison.data.get("seed", 0))
    found = pair(told[0], one, told[1], two, resamples, seed)
    return Check(f"F1 {told[0]} - {told[1]}: {signed(found.f1)}: {found.verdict}", found.verdict != "worse")
