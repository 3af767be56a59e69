"""What answers without any reasoning score on a set of rows: always computed from those rows, never constants."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Protocol

from pipeline.evaluation.metrics import Answer, classification

SHOWN = ("f1", "precision", "recall", "accuracy", "balanced_accuracy", "mcc")
SHORTCUT_TEMPLATES = ("parent", "has_collider")
"""The kinds of hypothesis that are most often valid."""

_VARIABLE = re.compile(r"\b[A-Z]\b")
_INDEPENDENT = re.compile(r"\b([A-Z]) (?:is independent of ([A-Z])\.|and ([A-Z]) are independent given )")


class Row(Protocol):
    """What a baseline looks at."""

    @property
    def label(self) -> int:
        """1 where the hypothesis follows from the premise."""

    @property
    def template(self) -> str:
        """The kind of hypothesis."""

    @property
    def premise_id(self) -> str:
        """The premise's text."""

    @property
    def hypothesis(self) -> str:
        """The hypothesis's text."""


def baselines(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """The metrics named in SHOWN of each baseline on these rows.

    `majority` gives the more frequent label of this set; `template` says yes to the hypotheses that are most often
    valid in the released data; `pair` does so unless the premise states that the two variables of a direct cause are
    independent. The released letters follow the causes; where letters are random that is no help, so `..._either`
    take direct causes in either order of the letters.
    """
    labels = [row.label for row in rows]
    majority: Answer = "yes" if sum(labels) * 2 > len(labels) else "no"
    rules: dict[str, Callable[[Row], bool]] = {
        "always_yes": lambda row: True,
        "majority": lambda row: majority == "yes",
        "template": lambda row: row.template in SHORTCUT_TEMPLATES,
        "pair": lambda row: pair_rule(row, ("parent",)),
        "template_either": lambda row: row.template in (*SHORTCUT_TEMPLATES, "child"),
        "pair_either": lambda row: pair_rule(row, ("parent", "child")),
    }
    results = {}
    for name, rule in rules.items():
        results[name] = shown([rule(row) for row in rows], labels)
    return results


def shown(yes: Sequence[bool | int], labels: Sequence[int]) -> dict[str, float]:
    """The metrics named in SHOWN of yes or no answers."""
    answers: list[Answer | None] = ["yes" if each else "no" for each in yes]
    numbers = classification(answers, labels)
    return {key: float(numbers[key]) for key in SHOWN}


def pair_rule(row: Row, direct: tuple[str, ...]) -> bool:
    """A collider, or a direct cause whose two variables are never stated independent, given whatever else."""
    if row.template in direct:
        return frozenset(_VARIABLE.findall(row.hypothesis)) not in independent_pairs(row.premise_id)
    return row.template == "has_collider"


def independent_pairs(premise: str) -> set[frozenset[str]]:
    """Pairs of variables that a premise states to be independent, unconditionally or given others."""
    return {frozenset((first, second or third)) for first, second, third in _INDEPENDENT.findall(premise)}
