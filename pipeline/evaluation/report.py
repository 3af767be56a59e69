"""One self-contained page of results per run: what exists is shown, what is missing is said. No network, no scripts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from pipeline.errors import UserError
from pipeline.evaluation.metrics import classification
from pipeline.evaluation.predictions import Prediction, Predictions, read_predictions
from pipeline.evaluation.schema import read_comparison
from pipeline.evaluation.summary import difference_lines
from pipeline.evaluation.svg import curve, interval_chart
from pipeline.recipe import Recipe
from pipeline.records import write_atomic
from pipeline.run import RunDir, now
from pipeline.settings import dump_yaml

CURVES = ("loss", "grad_norm", "reward", "dev_f1", "dev_share_yes", "dev_true_steps", "kl", "completions/mean_length")
EXAMPLES = 12


def write_report(run: RunDir) -> Path:
    """Write report.html from what the run has; its path. Raises NeedsMissing for a run that was never launched."""
    recipe, launch = run.read_resolved()
    comparison = read_comparison(run.comparison)
    names = list(comparison.models) if comparison else []
    found, broken = _predictions(run, names)
    page = _template().render(
        run=run.name,
        recipe=recipe,
        made=now(),
        comparison=comparison,
        chart=interval_chart(comparison) if comparison else "",
        differences=difference_lines(comparison) if comparison else [],
        confusion={name: confusion(one) for name, one in found.items()},
        groups={key: breakdown(found, key) for key in ("num_variables", "template")} if found else {},
        examples=examples(found),
        models=list(found),
        curves=stage_curves(run, recipe),
        stages=stage_records(run, recipe),
        settings=dump_yaml({**launch, **_plain(recipe)}),
        versions=next(iter(found.values())).header.versions if found else {},
        broken=broken,
    )
    write_atomic(run.report, page)
    return run.report


def _template() -> jinja2.Template:
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    return jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.Undefined).get_template("report.html.j2")


def _plain(recipe: Recipe) -> dict[str, Any]:
    from pipeline.load import dump_recipe

    return dump_recipe(recipe)


def _predictions(run: RunDir, names: Sequence[str]) -> tuple[dict[str, Predictions], list[str]]:
    found: dict[str, Predictions] = {}
    broken = []
    for name in names:
        try:
            found[name] = read_predictions(run.predictions(name))
        except UserError as error:
            broken.append(f"{name}: {error}")
    return found, broken


def confusion(predictions: Predictions) -> dict[str, int]:
    """How often each answer met each label."""
    counts = {f"{answer} {label}": 0 for label in (1, 0) for answer in ("yes", "no", "none")}
    for row in predictions.rows:
        counts[f"{row.answer or 'none'} {row.label}"] += 1
    return counts


def breakdown(found: dict[str, Predictions], key: str) -> list[dict[str, Any]]:
    """F1 and accuracy of each model on the rows of each value of a column."""
    first = next(iter(found.values())).rows
    values = sorted({getattr(row, key) for row in first})
    table = []
    for value in values:
        line: dict[str, Any] = {"value": value, "models": {}}
        for name, one in found.items():
            rows = [row for row in one.rows if getattr(row, key) == value]
            line["rows"], line["valid"] = len(rows), sum(row.label for row in rows)
            line["models"][name] = classification([row.answer for row in rows], [row.label for row in rows])
        table.append(line)
    return table


def examples(found: dict[str, Predictions]) -> list[dict[str, Any]]:
    """Rows on which the last two models differ: half that became right, half that became wrong."""
    if len(found) < 2:
        return []
    before, after = list(found.values())[-2:]
    pairs = list(zip(before.rows, after.rows, strict=True))
    fixed = [pair for pair in pairs if not pair[0].correct and pair[1].correct][: EXAMPLES // 2]
    lost = [pair for pair in pairs if pair[0].correct and not pair[1].correct][: EXAMPLES // 2]
    names = list(found)[-2:]
    return [_example(names, pair, "now right") for pair in fixed] + [
        _example(names, pair, "now wrong") for pair in lost
    ]


def _example(names: list[str], pair: tuple[Prediction, Prediction], verdict: str) -> dict[str, Any]:
    return {
        "verdict": verdict,
        "premise": pair[0].premise_id,
        "hypothesis": pair[0].hypothesis,
        "label": "Yes" if pair[0].label else "No",
        "answers": dict(zip(names, pair, strict=True)),
    }


def stage_curves(run: RunDir, recipe: Recipe) -> dict[str, dict[str, str]]:
    """An SVG curve of each metric that a training stage logged."""
    curves: dict[str, dict[str, str]] = {}
    for stage in recipe.training_stages():
        lines = run.read_metrics(stage)
        for key in CURVES:
            points = [(float(line["step"]), float(line[key])) for line in lines if key in line and "step" in line]
            if len(points) > 1:
                curves.setdefault(stage, {})[key] = curve(points)
    return curves


def stage_records(run: RunDir, recipe: Recipe) -> list[dict[str, Any]]:
    """What is recorded of each stage: state, attempt, times, place, fingerprint, size of the outputs."""
    records = []
    for entry in recipe.stages:
        state, done = run.state(entry.name), run.done(entry.name)
        size = sum(output.size for output in done.outputs) / 1e6 if done else None
        records.append({"stage": entry.name, "fingerprint": done.fingerprint if done else "", "size": size, **state})
    return records
