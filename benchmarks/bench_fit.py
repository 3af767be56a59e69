"""The fit planner against ten published peaks of GPU memory: blind, and after each declared adjustment.

    python benchmarks/bench_fit.py [--json]

Predicts what the allocator holds (no context, no fragmentation, no correction), as most of these tables report it.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.fit.architecture import Architecture, named
from pipeline.fit.step import Step, step_of
from pipeline.fit.tracer import Tracer
from pipeline.settings import parse_yaml, read_text

CASES = Path(__file__).with_name("fit_peaks.yaml")
UNITS = {"GiB": 1 << 30, "GB": 10**9}


def cases() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = parse_yaml(read_text(CASES), CASES.name)
    return found


def architecture(case: dict[str, Any]) -> Architecture:
    found = Architecture(case["config"]) if "config" in case else named(case["model"])
    assert found is not None
    return found


def predictions(case: dict[str, Any], tracer: Tracer) -> Iterator[tuple[str, float, float, float]]:
    """(what was adjusted, predicted in the published unit, relative error, CPU seconds), the blind prediction first."""
    value, unit = case["published"].split()
    dims, step, offloaded = architecture(case), _step(case), 0.0
    changes = [{"why": "blind"}, *case.get("adjustments", [])]
    for change in changes:
        facts = {key: value for key, value in change.items() if key not in ("why", "offload", "model_type")}
        step = step_of({**asdict(step), **facts})
        if "model_type" in change:
            step = replace(step, config={**step.config, "model_type": change["model_type"]})
        if change.get("offload"):
            offloaded = 2.0 * dims.layers * step.rows * step.tokens * dims.config["hidden_size"]
        trace = tracer.trace(step)
        phases = trace.at(dims.layers)
        peak = (max(sum(terms.values()) for terms in phases.values()) - offloaded) / UNITS[unit]
        yield change["why"], peak, peak / float(value) - 1, trace.seconds


def _step(case: dict[str, Any]) -> Step:
    return step_of({**asdict(Step(architecture(case).config, rows=1, tokens=1)), **case["step"]})


def main() -> None:
    table = Table("case", "published", "predicted", "error", box=None)
    found: dict[str, float] = {}
    blind: list[float] = []
    seconds: list[float] = []
    with tempfile.TemporaryDirectory() as folder, Tracer(Path(folder), lambda words: None) as tracer:
        for case in cases():
            for why, peak, error, took in predictions(case, tracer):
                first = why == "blind"
                shown = case["name"] if first else f"  + {why}"
                table.add_row(shown, case["published"] if first else "", f"{peak:.2f}", f"{error:+.1%}")
                found[case["name"]] = error
                blind += [error] if first else []
                seconds.append(took)
    errors = {"blind": blind, "adjusted": list(found.values())}
    told = {
        name: {"median": statistics.median(map(abs, each)), "largest": max(map(abs, each)),
               "within_10_percent": sum(abs(error) <= 0.10 for error in each)}
        for name, each in errors.items()
    }  # fmt: skip
    told["cpu_seconds_a_configuration"] = {"median": statistics.median(seconds), "largest": max(seconds)}
    if "--json" in sys.argv:
        print(json.dumps({"errors": found, **told}, indent=1))
        return
    console = Console(width=110)
    console.print(table)
    for name, facts in told.items():
        console.print(name, {key: round(value, 3) for key, value in facts.items()})


if __name__ == "__main__":
    main()
