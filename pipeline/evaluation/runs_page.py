"""The page that puts several runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.evaluation.leaderboard import published_tables
from pipeline.evaluation.render import render
from pipeline.evaluation.report import chart
from pipeline.evaluation.runs import SameRows, SideBySide
from pipeline.evaluation.summary import baseline_name, paired_line
from pipeline.records import write_atomic
from pipeline.run import now


def write_page(found: SideBySide, path: Path) -> None:
    """Write the page, whole or not at all."""
    page = render(
        "compare.html.j2",
        made=now(),
        runs=found.runs,
        sets=[_set(each) for each in found.sets],
        missing=found.missing,
        settings=found.settings,
        baseline_name=baseline_name,
    )
    write_atomic(path, page)


def _set(group: SameRows) -> dict[str, Any]:
    first = group.sides[0].comparison
    models = {f"{side.run.name} {name}": one for side in group.sides for name, one in side.comparison.models.items()}
    return {
        "data": first.data,
        "models": models,
        "baselines": first.baselines,
        "chart": chart(first, {name: one.f1 for name, one in models.items()}),
        "differences": [paired_line(each) for each in group.paired],
        "published": published_tables(first.data.get("published_test")),
        "refused": {
            f"{side.run.name} {name}": why for side in group.sides for name, why in side.comparison.refused.items()
        },
    }
