"""comparison.json from prediction files: metrics, baselines and differences of models on the same rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.evaluation.baselines import baselines
from pipeline.evaluation.metrics import bootstrap_f1, classification, difference_f1
from pipeline.evaluation.predictions import Predictions
from pipeline.evaluation.schema import BASE, BaselineResult, Comparison, Interval, ModelResult
from pipeline.records import write_json
from pipeline.run import now


def compare(
    predictions: Mapping[str, Predictions], stages: Sequence[str], task: str, resamples: int, seed: int
) -> Comparison:
    """Compare models by name on the same rows; `stages` are the recipe's training stages in order.

    Each stage is set against the one before it, a model that is no stage against the base model. Raises UserError
    when two models were asked different rows.
    """
    order = [name for name in (BASE, *stages) if name in predictions]
    order += sorted(set(predictions) - set(order))
    first = predictions[order[0]]
    for name in order[1:]:
        _same_rows(order[0], first, name, predictions[name])
    return Comparison(
        run=first.header.run,
        recipe=first.header.recipe,
        task=task,
        created=now(),
        data=_facts(first, resamples, seed),
        models={name: model_result(predictions[name], resamples, seed) for name in order},
        baselines={name: BaselineResult(**numbers) for name, numbers in baselines(first.rows).items()},
        differences={
            f"{name}-{other}": difference(predictions[name], predictions[other], resamples, seed)
            for name, other in compared_pairs(order, stages)
        },
    )


def write_comparison(path: Path, comparison: Comparison) -> None:
    """Write comparison.json atomically."""
    write_json(path, comparison.model_dump(exclude_none=True))


def compared_pairs(order: Sequence[str], stages: Sequence[str]) -> list[tuple[str, str]]:
    """Which models are set against which: each stage against the model before it, others against base."""
    chain = [name for name in order if name == BASE or name in stages]
    others = [name for name in order if name not in chain]
    return [*zip(chain[1:], chain[:-1], strict=True), *((name, BASE) for name in others if BASE in order)]


def model_result(predictions: Predictions, resamples: int, seed: int) -> ModelResult:
    """Metrics of one model."""
    rows = predictions.rows
    numbers: dict[str, Any] = classification(predictions.answers, predictions.labels)
    numbers["f1"] = bootstrap_f1(predictions.answers, predictions.labels, predictions.premises, resamples, seed)
    return ModelResult(
        **numbers,
        true_steps=sum(row.true_share for row in rows) / max(len(rows), 1),
        mean_completion_tokens=sum(row.tokens for row in rows) / max(len(rows), 1),
        truncated=sum(not row.ended for row in rows),
    )


def difference(predictions: Predictions, reference: Predictions, resamples: int, seed: int) -> Interval:
    """F1 of one model minus F1 of another on the same rows."""
    return difference_f1(
        predictions.answers, reference.answers, predictions.labels, predictions.premises, resamples, seed
    )


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
