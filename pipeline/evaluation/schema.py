"""What comparison.json holds. Light: the launcher reads it too."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import UserError
from pipeline.records import read_json

BASE = "base"
"""Name of the model before training among the models of a comparison; the others go by their stage's name."""

SOLVER = "solver"
"""Name of the exact solver among the baselines of a comparison: no shortcut, but the ceiling."""
Verdict = Literal["better", "worse", "not distinguishable from zero"]


class Numbers(BaseModel):
    """Base of the records: finite numbers only, immutable; what is not known is passed over."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True, allow_inf_nan=False)


class Interval(Numbers):
    """A value and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    @property
    def covers_zero(self) -> bool:
        """Whether zero lies inside: then a difference is not distinguishable from none."""
        return self.low <= 0.0 <= self.high

    @property
    def verdict(self) -> Verdict:
        """What a difference says: it is better or worse only when the interval excludes zero."""
        if self.covers_zero:
            return "not distinguishable from zero"
        return "better" if self.low > 0 else "worse"


class Part(Numbers):
    """Metrics of one model on some of the rows, or by other labels."""

    rows: int
    valid: int
    f1: Interval
    precision: float
    recall: float
    accuracy: float
    unparsable: int


class LabelVersions(Numbers):
    """The same answers counted by the released labels and by the right ones."""

    differ: int
    """Rows that the two label differently."""
    released: Part
    corrected: Part


class Calibration(Numbers):
    """Probabilities of Yes against the labels, over the rows that have one."""

    rows: int
    brier: float
    ece: float


class Sampling(Numbers):
    """What several completions for each row add, by how many of them count (`"1"`, `"2"`, `"4"` ... and all)."""

    samples: int
    pass_at: dict[str, Interval]
    """Chance that one of k is right. Guessing Yes or No at random has 1 - 2**-k."""
    maj_at: dict[str, Interval]
    """Share of rows where the most frequent answer of the first k is right."""
    maj_f1: dict[str, Interval]
    """F1 of the valid class of those answers."""


class ModelResult(Numbers):
    """Metrics of one model, fractions 0..1 of the valid class; the meaning of each: evaluation/metrics.py."""

    f1: Interval
    precision: float
    recall: float
    accuracy: float
    rows: int
    unparsable: int
    accuracy_published_rule: float | None = None
    valid: int | None = None
    true_steps: float | None = None
    """Mean share of a completion's reasoning steps before its first false one."""
    mean_completion_tokens: float | None = None
    truncated: int | None = None
    """Completions that ended at max_new_tokens instead of by themselves."""
    balanced_accuracy: float | None = None
    mcc: float | None = None
    unparsable_share: float | None = None
    intervals: dict[str, Interval] = Field(default_factory=dict)
    """Of precision, recall, accuracy, balanced_accuracy and mcc, as that of f1."""
    calibration: Calibration | None = None
    sampling: Sampling | None = None
    by_num_variables: dict[str, Part] = Field(default_factory=dict)
    by_template: dict[str, Part] = Field(default_factory=dict)
    label_versions: LabelVersions | None = None
    """Where every row is a published one."""


class BaselineResult(Numbers):
    """Metrics of one baseline on the same rows."""

    f1: float
    precision: float
    recall: float
    accuracy: float
    balanced_accuracy: float | None = None
    mcc: float | None = None


class Paired(Numbers):
    """Two models on the same rows, row by row."""

    first: str
    second: str
    f1: Interval
    """F1 of the first minus F1 of the second, with its paired bootstrap interval."""
    fixed: int
    """Rows that only the first has right."""
    broken: int
    """Rows that only the second has right."""
    mcnemar_p: float
    """Exact, two-sided; it takes rows for independent, which those of one premise are not."""
    verdict: Verdict
    """By the interval alone: nothing is better whose interval covers zero."""


class SolvedResult(Numbers):
    """Metrics of one model on a task whose answers are right or wrong and have no classes."""

    accuracy: Interval
    """Share of right answers, of several for a row the mean: pass@1. The bootstrap draws rows."""
    pass_at: dict[str, Interval] = Field(default_factory=dict)
    """Where several answers were drawn for each row: k -> chance that one of k is right, without bias (Chen et al.
    2021, arXiv 2107.03374)."""
    share: float
    """Mean share of the tests passed, or of the parts of an answer that are right; 1 for a right answer."""
    rows: int
    not_graded: int
    """Rows whose reference cannot be graded: not counted in what stands above."""
    unparsable: int
    """Answers that could not be found; they are wrong."""
    mean_completion_tokens: float
    truncated: int


class SolvedPair(Numbers):
    """Two models on the same rows of a task without classes."""

    first: str
    second: str
    accuracy: Interval
    """Accuracy of the first minus that of the second, with its paired bootstrap interval."""
    fixed: int
    """Rows whose first answer only the first model has right."""
    broken: int
    mcnemar_p: float
    verdict: Verdict


class Comparison(Numbers):
    """comparison.json: every model and every baseline on the same rows. Top level is the recipe's main test set."""

    run: str
    recipe: str
    task: str
    created: str
    data: dict[str, Any] = Field(default_factory=dict)
    solved: dict[str, SolvedResult] = Field(default_factory=dict)
    """Instead of `models`, for a task without classes."""
    solved_pairs: dict[str, SolvedPair] = Field(default_factory=dict)
    """Instead of `paired`."""
    models: dict[str, ModelResult]
    """In order: base, the training stages, then folders evaluated by hand."""
    baselines: dict[str, BaselineResult] = Field(default_factory=dict)
    """What answers without reasoning, and `solver`: the exact answers, the ceiling that wrong labels set."""
    differences: dict[str, Interval] = Field(default_factory=dict)
    """F1 of the first minus F1 of the second, such as `grpo-sft`."""
    paired: dict[str, Paired] = Field(default_factory=dict)
    """The same pairs, with what changed."""
    refused: dict[str, str] = Field(default_factory=dict)
    """Models whose predictions are not counted, and why."""
    sets: dict[str, Comparison] = Field(default_factory=dict)
    """Further test sets by name, each the same."""


def read_comparison(path: Path) -> Comparison | None:
    """The comparison in a file, or None when there is none. Raises UserError when it has other contents."""
    value = read_json(path)
    return None if value is None else parse_comparison(value, str(path))


def parse_comparison(value: Any, where: str = "comparison.json") -> Comparison:
    """A comparison from its JSON value. Raises UserError naming the first field that is wrong."""
    try:
        return Comparison.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise UserError(
            f"not a comparison: {field}: {first['msg']}", value=first["input"] if first["loc"] else None, where=where,
            do="make it anew: run the evaluate stage",
        ) from None  # fmt: skip
