"""How a model does on dev rows: F1 where answers are yes or no, accuracy where the task has no classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.evaluation.metrics import f1_score
from pipeline.tasks import corr2cause
from pipeline.tasks.names import score_all

Row = Mapping[str, Any]


def dev_metric(rows: Sequence[Row]) -> str:
    """`f1` or `accuracy`: what the best weights are chosen by."""
    return "accuracy" if "published" in rows[0] else "f1"


def verdicts(rows: Sequence[Row], texts: Sequence[str]) -> list[bool | None]:
    """Whether each completion is right; None where the row cannot be graded."""
    if "published" in rows[0]:
        cases = [(row["task"], text, row["published"]) for row, text in zip(rows, texts, strict=True)]
        return [one.correct for one in score_all(cases)]
    return [corr2cause.score(text, row).correct for row, text in zip(rows, texts, strict=True)]


def dev_values(rows: Sequence[Row], texts: Sequence[str]) -> dict[str, float]:
    """Metrics of the completions of dev rows, by the names under which they are logged."""
    if dev_metric(rows) == "accuracy":
        cases = [(row["task"], text, row["published"]) for row, text in zip(rows, texts, strict=True)]
        scored = score_all(cases)
        graded = [one for one in scored if one.correct is not None]
        right = sum(one.correct is True for one in graded)
        return {
            "dev_accuracy": right / max(len(graded), 1),
            "dev_unparsable": sum(one.parsed is None for one in scored) / len(scored),
        }
    scores = [corr2cause.score(text, row) for row, text in zip(rows, texts, strict=True)]
    yes, no, none = (sum(one.parsed == each for one in scores) / len(scores) for each in ("yes", "no", None))
    return {
        "dev_f1": f1_score([one.parsed for one in scores], [row["label"] for row in rows]),
        "dev_share_yes": yes,
        "dev_share_no": no,
        "dev_unparsable": none,
        "dev_true_steps": sum(one.true_share for one in scores) / len(scores),
    }
