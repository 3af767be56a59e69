"""One self-contained page of results per run: what exists is shown, what is missing is said. No network."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from pipeline.errors import UserError
from pipeline.evaluation import changes, provenance
from pipeline.evaluation.leaderboard import published_tables
from pipeline.evaluation.predictions import Predictions, read_predictions
from pipeline.evaluation.render import render
from pipeline.evaluation.robustness_page import robustness_section
from pipeline.evaluation.schema import SOLVER, Comparison, read_comparison
from pipeline.evaluation.summary import baseline_name, difference_lines
from pipeline.evaluation.svg import curve, interval_chart
from pipeline.load import dump_recipe
from pipeline.recipe import Recipe
from pipeline.records import write_atomic
from pipeline.run import RunDir, now
from pipeline.settings import dump_yaml

CURVES = (
    "loss", "task_loss", "causal_loss", "spurious_loss", "val_causal_stability", "val_spurious_separation",
    "val_causal_discrimination", "val_task_loss", "dev_f1", "dev_accuracy", "dev_share_yes", "dev_true_steps", "reward",
    "reward_std", "kl", "completions/mean_length", "grad_norm", "share_yes", "accuracy", "true_steps",
    "frac_reward_zero_std", "mean_token_accuracy", "entropy", "learning_rate",
)  # fmt: skip
"""Metrics that are drawn, in this order; the parts of the reward come after the reward."""


def write_report(run: RunDir) -> Path:
    """Write report.html from what the run has; its path. Raises NeedsMissing for a run that was never launched."""
    recipe, launch = run.read_resolved()
    comparison, broken = _comparison(run)
    found = _predictions(run, comparison.models if comparison else (), broken)
    page = render(
        "report.html.j2",
        run=run.name,
        recipe=recipe,
        made=now(),
        broken=broken,
        **_results(comparison, found),
        robustness=robustness_section(run),
        curves=stage_curves(run, recipe),
        warnings=provenance.warnings(run, recipe),
        costs=provenance.costs(run, recipe, found),
        attempts=provenance.attempts(run, recipe),
        fingerprints={entry.name: done.fingerprint for entry in recipe.stages if (done := run.done(entry.name))},
        parts=provenance.data_parts(run, str(comparison.data.get("fingerprint", ""))) if comparison else {},
        headers={name: each.header for name, each in found.items()},
        changed=provenance.changed_settings(recipe),
        settings=dump_yaml({**launch, **dump_recipe(recipe)}),
    )
    write_atomic(run.report, page)
    return run.report


def _comparison(run: RunDir) -> tuple[Comparison | None, list[str]]:
    """The comparison, and what is wrong with its file."""
    try:
        return read_comparison(run.comparison), []
    except UserError as error:
        return None, [str(error)]


def _predictions(run: RunDir, names: Iterable[str], broken: list[str]) -> dict[str, Predictions]:
    """The prediction files of the comparison's models; what is wrong with the others goes to `broken`."""
    found: dict[str, Predictions] = {}
    for name in names:
        try:
            found[name] = read_predictions(run.predictions(name))
        except UserError as error:
            broken.append(f"{name}: {error}")
    return found


def _results(comparison: Comparison | None, found: Mapping[str, Predictions]) -> dict[str, Any]:
    """What the page shows of the comparison and of the rows."""
    if comparison is None:
        return {"comparison": None, "solved": None, "rows": [], "examples": {}, "sets": {}}
    if comparison.solved:
        intervals = {name: model.accuracy for name, model in comparison.solved.items()}
        picture = interval_chart(intervals, {}, None)
        lines = difference_lines(comparison)
        return {"comparison": None, "rows": [], "examples": {}, "sets": {}, "solved": comparison, "chart": picture,
                "differences": lines}  # fmt: skip
    usable = found if len({len(each.rows) for each in found.values()}) <= 1 else {}
    listed = changes.lines(comparison, usable)
    return {
        "comparison": comparison,
        "solved": None,
        **_numbers(comparison),
        "sets": {name: {"comparison": each, **_numbers(each)} for name, each in comparison.sets.items()},
        "baseline_name": baseline_name,
        "confusion": {name: confusion(each) for name, each in found.items()},
        "examples": changes.examples(comparison, usable),
        "rows": listed,
        "completions": script_data(changes.completions(usable, len(listed))),
    }


def _numbers(comparison: Comparison) -> dict[str, Any]:
    """What is shown of every test set."""
    return {
        "chart": chart(comparison, {name: model.f1 for name, model in comparison.models.items()}),
        "differences": difference_lines(comparison),
        "published": published_tables(comparison.data.get("published_test")),
    }


def script_data(value: Any) -> Markup:
    """JSON that may stand in a script element: no text in it can end the element."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace("&", "\\u0026"))


def chart(comparison: Comparison, models: Mapping[str, Any]) -> Markup:
    """The intervals of some models among the baselines of a comparison."""
    shortcuts = {baseline_name(name): each.f1 for name, each in comparison.baselines.items() if name != SOLVER}
    solver = comparison.baselines.get(SOLVER)
    return interval_chart(models, shortcuts, solver.f1 if solver else None)


def confusion(predictions: Predictions) -> dict[str, int]:
    """How often each answer met each label."""
    counts = {f"{answer} {label}": 0 for label in (1, 0) for answer in ("yes", "no", "none")}
    for row in predictions.rows:
        counts[f"{row.answer or 'none'} {row.label}"] += 1
    return counts


def stage_curves(run: RunDir, recipe: Recipe) -> dict[str, dict[str, Markup]]:
    """An SVG curve of each metric that a training stage logged at two steps or more.

    Steps that a resumed attempt did again count once, as they were done last.
    """
    curves: dict[str, dict[str, Markup]] = {}
    for stage in recipe.training_stages():
        lines = run.read_metrics(stage)
        parts = sorted({key for line in lines for key in line if key.startswith("rewards/") and key.endswith("/mean")})
        place = CURVES.index("reward") + 1
        for key in (*CURVES[:place], *parts, *CURVES[place:]):
            points = {float(line["step"]): float(line[key]) for line in lines if key in line and "step" in line}
            if len(points) > 1:
                curves.setdefault(stage, {})[key] = curve(sorted(points.items()))
    return curves
