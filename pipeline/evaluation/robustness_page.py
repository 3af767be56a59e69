"""The report's section on injected instructions, from robustness.json."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from markupsafe import Markup

from pipeline.evaluation.render import render
from pipeline.evaluation.robustness import GROUPS, MEASURES, SUCCESS
from pipeline.records import read_json
from pipeline.run import RunDir

LOWER_IS_BETTER = ("attack_success", "over_refusal")
"""Beginnings of the names of measures that are better when lower."""


def robustness_section(run: RunDir) -> Markup | None:
    """The section as HTML, or None for a run whose models were not attacked."""
    results = read_json(run.robustness)
    if results is None:
        return None
    measures = [key for key in MEASURES if any(key in model["measures"] for model in results["models"].values())]
    page = render("robustness.html.j2", robustness=results, measures=measures, groups=_groups(results),
                  changes=list(change_lines(results)))  # fmt: skip
    return Markup(page)  # made by our own template, which escapes


def change_lines(results: dict[str, Any]) -> Iterator[str]:
    """One line a pair of models and measure whose difference the interval tells from zero; the others in one line."""
    for pair in results["differences"]:
        unsure = []
        for key, found in pair["measures"].items():
            name = key.replace("_", " ")
            if found["low"] <= 0 <= found["high"]:
                unsure.append(name)
                continue
            better = (found["value"] < 0) == key.startswith(LOWER_IS_BETTER)
            yield (f"{pair['after']} against {pair['before']}: {name} {found['value']:+.3f} ({found['low']:+.3f} to "
                   f"{found['high']:+.3f}), {'better' if better else 'worse'}")  # fmt: skip
        if unsure:
            yield f"{pair['after']} against {pair['before']}: no difference that is sure in {', '.join(unsure)}"


def result_lines(run: RunDir) -> list[str]:
    """One line a model with its measures, then the differences, for the terminal; empty where nothing was attacked."""
    results = read_json(run.robustness)
    if results is None:
        return []
    lines = []
    for name, model in results["models"].items():
        told = (f"{key.replace('_', ' ')} {found['value']:.3f}" for key, found in model["measures"].items())
        lines.append(f"{name}: {', '.join(told)}")
    return [*lines, *change_lines(results)]


def _groups(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """For each key: value -> rows, whether unseen, and the first measure of SUCCESS there is, model by model."""
    models = list(results["models"].values())
    found: dict[str, dict[str, Any]] = {}
    for key in GROUPS:
        for value in models[0]["groups"].get(key, {}) if models else ():
            lines = [model["groups"][key].get(value, {}) for model in models]
            shares = [next((line[name] for name in SUCCESS if name in line), None) for line in lines]
            rows = next((share["rows"] for share in shares if share), 0)
            found.setdefault(key, {})[value] = {"rows": rows, "unseen": lines[0].get("unseen"), "models": shares}
    return found
