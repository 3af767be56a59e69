"""Several runs side by side: grouped by the test rows they were asked, with what differs in their settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pipeline.errors import NeedsMissing, UserError
from pipeline.evaluation.compare import pair
from pipeline.evaluation.gate import chosen_model
from pipeline.evaluation.predictions import Predictions, read_predictions
from pipeline.evaluation.provenance import flatten
from pipeline.evaluation.same_rows import Question, aligned, key_of_test
from pipeline.evaluation.schema import Comparison, Paired, read_comparison
from pipeline.load import dump_recipe
from pipeline.run import RunDir


@dataclass
class Side:
    """One run."""

    run: RunDir
    comparison: Comparison
    model: str
    """Its last model: what the runs are compared by."""
    predictions: Predictions


@dataclass
class SameRows:
    """The runs that were asked the same test rows, and their differences from the first of them."""

    sides: list[Side]
    paired: list[Paired] = field(default_factory=list)


@dataclass
class SideBySide:
    """All that is shown of several runs."""

    sets: list[SameRows]
    missing: dict[str, str]
    """Runs without a result, and why."""
    settings: dict[str, list[str]]
    """Keys whose value differs between the runs -> the value in each of them, in the order of `runs`."""
    runs: list[str]


def side_by_side(runs: Sequence[RunDir]) -> SideBySide:
    """Put runs side by side. Raises NeedsMissing when none of them has a result."""
    missing: dict[str, str] = {}
    groups: dict[frozenset[tuple[Question, int]], SameRows] = {}
    for run in runs:
        try:
            side = _side(run)
        except (NeedsMissing, UserError) as error:
            missing[run.name] = str(error)
            continue
        groups.setdefault(key_of_test(side.predictions), SameRows([])).sides.append(side)
    if not groups:
        raise NeedsMissing(
            "none of these runs has a result", value=[run.name for run in runs], where=next(iter(missing.values())),
            do="run their evaluation",
        )  # fmt: skip
    for each in groups.values():
        each.paired = [_paired(each.sides[0], other) for other in each.sides[1:]]
    return SideBySide(list(groups.values()), missing, _differing(runs), [run.name for run in runs])


def _side(run: RunDir) -> Side:
    comparison = read_comparison(run.comparison)
    if comparison is None:
        raise NeedsMissing("no comparison yet", where=str(run.comparison), do="run its evaluation")
    if not comparison.models:
        raise UserError("a comparison without models", where=str(run.comparison), do="evaluate again")
    stages = [stage for stage in run.read_resolved()[0].training_stages() if stage in comparison.models]
    model = chosen_model(run, comparison, stages[-1] if stages else list(comparison.models)[-1])
    return Side(run, comparison, model, read_predictions(run.predictions(model)))


def _paired(first: Side, other: Side) -> Paired:
    """The other run's last model against the first run's."""
    names = [f"{side.run.name} {side.model}" for side in (other, first)]
    one, two = aligned(names[0], other.predictions, names[1], first.predictions)
    facts = first.comparison.data
    return pair(names[0], one, names[1], two, int(facts.get("resamples", 1000)), int(facts.get("seed", 0)))


def _differing(runs: Sequence[RunDir]) -> dict[str, list[str]]:
    flat = [flatten(dump_recipe(run.read_resolved()[0])) for run in runs]
    keys = sorted({key for each in flat for key in each})
    found = {key: [each.get(key, "") for each in flat] for key in keys}
    return {key: values for key, values in found.items() if len(set(values)) > 1}
