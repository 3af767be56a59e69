"""Small charts as inline SVG; colours come from the page, so they follow its light or dark scheme."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from markupsafe import Markup

from pipeline.evaluation.schema import Comparison

WIDTH, LEFT, ROW = 640, 110, 30


def interval_chart(comparison: Comparison) -> Markup:
    """F1 of each model with its 95 % interval, and the baselines as upright lines; x runs from 0 to 1."""
    names = list(comparison.models)
    height = ROW * (len(names) + 2) + 12
    span = WIDTH - LEFT - 30
    parts = []
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        x = LEFT + tick * span
        parts.append(f'<line class="grid" x1="{x}" y1="6" x2="{x}" y2="{height - ROW - 12}"/>')
        parts.append(f'<text x="{x}" y="{height - ROW + 4}" text-anchor="middle">{tick:g}</text>')
    for name, baseline in comparison.baselines.items():
        x = LEFT + baseline.f1 * span
        label = escape(name.replace("_", " "))
        parts.append(
            f'<line class="baseline" x1="{x}" y1="6" x2="{x}" y2="{height - ROW - 12}"><title>{label}</title></line>'
        )
    strongest = max(comparison.baselines.items(), key=lambda item: item[1].f1, default=None)
    if strongest:
        x = LEFT + strongest[1].f1 * span
        label = escape(strongest[0].replace("_", " "))
        parts.append(
            f'<text x="{x}" y="{height - 4}" text-anchor="middle">best baseline: {label} {strongest[1].f1:.3f}</text>'
        )
    for place, name in enumerate(names):
        f1 = comparison.models[name].f1
        y = ROW * place + 22
        low, value, high = (LEFT + each * span for each in (f1.low, f1.value, f1.high))
        parts.append(f'<text x="{LEFT - 10}" y="{y + 4}" text-anchor="end">{escape(name)}</text>')
        parts.append(f'<line class="whisker" x1="{low:.1f}" y1="{y}" x2="{high:.1f}" y2="{y}"/>')
        parts.append(f'<circle class="dot" cx="{value:.1f}" cy="{y}" r="5"/>')
        parts.append(f'<text x="{min(high + 8, WIDTH - 36):.1f}" y="{y + 4}">{f1.value:.3f}</text>')
    return _svg(WIDTH, height, parts, "F1 of each model with its 95 % interval")


def curve(points: Sequence[tuple[float, float]]) -> Markup:
    """A line through (step, value) points with the range of values at its left and the last step at its right."""
    width, height, left, top = 300, 120, 54, 10
    steps, values = [point[0] for point in points], [point[1] for point in points]
    low, high = min(values), max(values)
    across, up = (max(steps) - min(steps)) or 1.0, (high - low) or 1.0
    place = [
        f"{left + (step - min(steps)) / across * (width - left - 10):.1f},"
        f"{top + (high - value) / up * (height - top - 26):.1f}"
        for step, value in points
    ]
    parts = [
        f'<polyline class="curve" points="{" ".join(place)}"/>',
        f'<text x="{left - 6}" y="{top + 5}" text-anchor="end">{high:.3g}</text>',
        f'<text x="{left - 6}" y="{height - 22}" text-anchor="end">{low:.3g}</text>',
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
