"""Small charts as inline SVG; colours come from the page, so they follow its light or dark scheme."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from markupsafe import Markup

from pipeline.evaluation.schema import Interval

WIDTH, LEFT, RIGHT, ROW = 660, 150, 60, 30
LABEL = 22
"""Characters of a name that fit at the left."""


def interval_chart(models: Mapping[str, Interval], shortcuts: Mapping[str, float], ceiling: float | None) -> Markup:
    """F1 of each model with its 95 % interval; upright lines for what answers without reasoning and for the ceiling.

    x runs from 0 to 1. Only the strongest shortcut and the ceiling are named; the others have a tooltip.
    """
    bottom = ROW * len(models) + 12
    span = WIDTH - LEFT - RIGHT
    parts = []
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        x = LEFT + tick * span
        parts.append(f'<line class="grid" x1="{x}" y1="6" x2="{x}" y2="{bottom}"/>')
        parts.append(f'<text x="{x}" y="{bottom + 16}" text-anchor="middle">{tick:g}</text>')
    uprights = [(name, value, "shortcut") for name, value in shortcuts.items()]
    uprights += [("exact solver", ceiling, "ceiling")] if ceiling is not None else []
    for name, value, kind in uprights:
        x, told = LEFT + value * span, f"{escape(name)} {value:.3f}"
        line = f'<line class="{kind}" x1="{x:.1f}" y1="6" x2="{x:.1f}" y2="{bottom}"><title>{told}</title></line>'
        parts.append(line)
    strongest = max(shortcuts, key=lambda name: shortcuts[name], default=None)
    captions = [f"best shortcut: {strongest} {shortcuts[strongest]:.3f}"] if strongest else []
    captions += [f"ceiling: exact solver {ceiling:.3f}"] if ceiling is not None else []
    parts.append(f'<text x="{LEFT}" y="{bottom + 36}">{escape("; ".join(captions))}</text>')
    for place, (name, f1) in enumerate(models.items()):
        y = ROW * place + 22
        low, value, high = (LEFT + each * span for each in (f1.low, f1.value, f1.high))
        label = name if len(name) <= LABEL else "…" + name[1 - LABEL :]
        parts.append(f'<text x="{LEFT - 10}" y="{y + 4}" text-anchor="end">{escape(label)}</text>')
        parts.append(f'<line class="whisker" x1="{low:.1f}" y1="{y}" x2="{high:.1f}" y2="{y}"/>')
        parts.append(f'<circle class="dot" cx="{value:.1f}" cy="{y}" r="5"/>')
        parts.append(f'<text x="{high + 10:.1f}" y="{y + 4}">{f1.value:.3f}</text>')
    return _svg(WIDTH, bottom + 44, parts, "F1 of each model with its 95 % interval")


def curve(points: Sequence[tuple[float, float]]) -> Markup:
    """A line through (step, value) points with the range of values at its left and the last step at its right."""
    width, height, left, top = 300, 120, 66, 10
    steps, values = [point[0] for point in points], [point[1] for point in points]
    low, high = min(values), max(values)
    across, up = (max(steps) - min(steps)) or 1.0, (high - low) or 1.0
    place = [
        f"{left + (step - min(steps)) / across * (width - left - 10):.1f},"
        f"{top + (high - value) / up * (height - top - 26):.1f}"
        for step, value in points
    ]
    parts = [
        f'<line class="grid" x1="{left}" y1="{height - 20}" x2="{width - 10}" y2="{height - 20}"/>',
        f'<polyline class="curve" points="{" ".join(place)}"/>',
        f'<text x="{left - 6}" y="{top + 5}" text-anchor="end">{high:.3g}</text>',
        f'<text x="{left - 6}" y="{height - 20}" text-anchor="end">{low:.3g}</text>',
        f'<text x="{left}" y="{height - 4}">step {min(steps):g}</text>',
        f'<text x="{width - 10}" y="{height - 4}" text-anchor="end">{max(steps):g}</text>',
    ]
    return _svg(width, height, parts, f"from {values[0]:.3g} to {values[-1]:.3g}")


def _svg(width: int, height: int, parts: Sequence[str], title: str) -> Markup:
    opening = (
        f'<svg viewBox="0 0 {width} {height}" role="img" style="max-width:{width}px" aria-label="{escape(title)}">'
    )
    # Every text in it is escaped above.
    return Markup(opening + "".join(parts) + "</svg>")
