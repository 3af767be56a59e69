"""comparison.json from prediction files: metrics, baselines and differences of models on the same rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import StageFailed, UserError
from pipeline.evaluation.baselines import baselines, shown
from pipeline.evaluation.labels import TestVersion, exact_labels, parsed, published_test, released_labels
from pipeline.evaluation.metrics import bootstrap, bootstrap_f1, calibration, classification, difference_f1, mcnemar
from pipeline.evaluation.predictions import Predictions, speechless
from pipeline.evaluation.sampling import sampling
from pipeline.evaluation.schema import (
    BASE,
    SOLVER,
    BaselineResult,
    Calibration,
    Comparison,
    LabelVersions,
    ModelResult,
    Paired,
    Part,
)
from pipeline.records import write_json
from pipeline.run import now


def compare(
    predictions: Mapping[str, Predictions],
    stages: Sequence[str],
    task: str,
    resamples: int,
    seed: int,
    refused: Mapping[str, str] | None = None,
) -> Comparison:
    """Compare models by name on the same rows; `stages` are the recipe's training stages in order.

    Each stage is set against those before it, a model that is no stage against the base model. A model that says
    nothing in any row is named in `refused`, beside those given (name -> why), and not counted. Raises UserError when
    two models were asked different rows, and when no model says anything; StageFailed when there is none at all.
    """
    order = [name for name in (BASE, *stages) if name in predictions]
    order += sorted(set(predictions) - set(order))
    if not order:
        raise StageFailed(next(iter((refused or {}).values()), "no model has predictions"))
    first = predictions[order[0]]
    for name in order[1:]:
        _same_rows(order[0], first, name, predictions[name])
    silent = {name: why for name in order if (why := speechless(name, predictions[name]))}
    counted = [name for name in order if name not in silent]
    if not counted:
        raise silent[order[0]]
    known = known_of(first)
    paired = {
        f"{name}-{other}": pair(name, predictions[name], other, predictions[other], resamples, seed)
        for name, other in compared_pairs(counted, stages)
    }
    return Comparison(
        run=first.header.run,
        recipe=first.header.recipe,
        task=task,
        created=now(),
        data={**_facts(first, resamples, seed), **({"published_test": known.test} if known.test else {})},
        models={name: model_result(predictions[name], known, resamples, seed) for name in counted},
        baselines={name: BaselineResult(**numbers) for name, numbers in _baselines(first, known).items()},
        differences={name: each.f1 for name, each in paired.items()},
        paired=paired,
        refused={**(refused or {}), **{name: str(why) for name, why in silent.items()}},
    )


@dataclass(frozen=True)
class Known:
    """What the causal engine knows of the rows that all models were asked."""

    test: TestVersion | None
    released: list[int] | None
    exact: list[int] | None


def known_of(predictions: Predictions) -> Known:
    """Labels by both versions, as far as every row has them, and the published test that the rows are."""
    read = parsed(predictions.rows)
    test = published_test(predictions.rows)
    if read is None:
        return Known(test, None, None)
    return Known(test, predictions.labels if test else released_labels(read), exact_labels(read))


def _baselines(predictions: Predictions, known: Known) -> dict[str, dict[str, float]]:
    found = baselines(predictions.rows)
    return {**found, SOLVER: shown(known.exact, predictions.labels)} if known.exact else found


def fail_for_refused(comparison: Comparison, models: Iterable[str]) -> None:
    """Raise StageFailed when one of these models is among the refused ones."""
    for name in models:
        for one in (comparison, *comparison.sets.values()):
            if name in one.refused:
                raise StageFailed(one.refused[name])


def write_comparison(path: Path, comparison: Comparison) -> None:
    """Write comparison.json atomically."""
    write_json(path, comparison.model_dump(exclude_none=True))


def compared_pairs(order: Sequence[str], stages: Sequence[str]) -> list[tuple[str, str]]:
    """Which models are set against which: a stage against all before it, the nearest first; others against base."""
    chain = [name for name in order if name == BASE or name in stages]
    others = [name for name in order if name not in chain]
    before = [(name, chain[other]) for place, name in enumerate(chain) for other in reversed(range(place))]
    return [*before, *((name, BASE) for name in others if BASE in order)]


def model_result(predictions: Predictions, known: Known, resamples: int, seed: int) -> ModelResult:
    """Everything that is counted of one model."""
    rows, labels = predictions.rows, predictions.labels
    numbers: dict[str, Any] = classification(predictions.answers, labels)
    intervals = bootstrap(predictions.answers, labels, predictions.premises, resamples, seed)
    numbers["f1"] = intervals.pop("f1")
    return ModelResult(
        **numbers,
        unparsable_share=numbers["unparsable"] / max(len(rows), 1),
        intervals=intervals,
        true_steps=sum(row.true_share for row in rows) / max(len(rows), 1),
        mean_completion_tokens=sum(row.tokens for row in rows) / max(len(rows), 1),
        truncated=sum(not row.ended for row in rows),
        calibration=_calibration(predictions),
        sampling=sampling(predictions, resamples, seed),
        by_num_variables=_groups(predictions, [row.num_variables for row in rows], resamples, seed),
        by_template=_groups(predictions, [row.template for row in rows], resamples, seed),
        label_versions=_label_versions(predictions, known, resamples, seed),
    )


def _calibration(predictions: Predictions) -> Calibration | None:
    told = [(row.p_yes, row.label) for row in predictions.rows if row.p_yes is not None]
    if not told:
        return None
    brier, ece = calibration([p for p, _ in told], [label for _, label in told])
    return Calibration(rows=len(told), brier=brier, ece=ece)


def _groups(predictions: Predictions, keys: Sequence[Any], resamples: int, seed: int) -> dict[str, Part]:
    """Metrics of the rows of each key, keys in sorted order."""
    places: dict[Any, list[int]] = {}
    for place, key in enumerate(keys):
        places.setdefault(key, []).append(place)
    labels = predictions.labels
    return {str(key): _part(predictions, places[key], labels, resamples, seed) for key in sorted(places)}


def _part(predictions: Predictions, which: Sequence[int], labels: Sequence[int], resamples: int, seed: int) -> Part:
    answers, own = [predictions.rows[i].answer for i in which], [labels[i] for i in which]
    numbers = classification(answers, own)
    f1 = bootstrap_f1(answers, own, [predictions.rows[i].premise_id for i in which], resamples, seed)
    return Part(**{**numbers, "f1": f1})  # type: ignore[arg-type]


def _label_versions(predictions: Predictions, known: Known, resamples: int, seed: int) -> LabelVersions | None:
    if known.released is None or known.exact is None:
        return None
    every = range(len(predictions.rows))
    return LabelVersions(
        differ=sum(one != other for one, other in zip(known.released, known.exact, strict=True)),
        released=_part(predictions, every, known.released, resamples, seed),
        corrected=_part(predictions, every, known.exact, resamples, seed),
    )


def pair(name: str, one: Predictions, other: str, two: Predictions, resamples: int, seed: int) -> Paired:
    """One model against another on the same rows."""
    f1 = difference_f1(one.answers, two.answers, one.labels, one.premises, resamples, seed)
    rows = list(zip(one.rows, two.rows, strict=True))
    fixed = sum(a.correct and not b.correct for a, b in rows)
    broken = sum(b.correct and not a.correct for a, b in rows)
    return Paired(
        first=name, second=other, f1=f1, fixed=fixed, broken=broken, mcnemar_p=mcnemar(fixed, broken),
        verdict=f1.verdict,
    )  # fmt: skip


def _facts(predictions: Predictions, resamples: int, seed: int) -> dict[str, Any]:
    return {
        "fingerprint": predictions.header.data_fingerprint,
        "rows": len(predictions.rows),
        "valid": sum(predictions.labels),
        "premises": len(set(predictions.premises)),
        "num_variables": sorted({row.num_variables for row in predictions.rows}),
        "resamples": resamples,
        "seed": seed,
    }


def _same_rows(name: str, first: Predictions, other: str, second: Predictions) -> None:
    if first.header.data_fingerprint != second.header.data_fingerprint:
        raise UserError(
            f"{name} and {other} were asked rows of different data versions",
            value=[first.header.data_fingerprint, second.header.data_fingerprint], do="evaluate both again",
        )  # fmt: skip
    for one, two in zip(first.rows, second.rows, strict=False):
        if (one.id, one.prompt, one.label) != (two.id, two.prompt, two.label):
            raise UserError(f"{name} and {other} were asked different things in row {one.row}", value=two.id,
                            do="evaluate both again")  # fmt: skip
    if len(first.rows) != len(second.rows):
        raise UserError(f"{name} and {other} have different numbers of rows", value=[len(first.rows), len(second.rows)],
                        do="evaluate both again")  # fmt: skip
