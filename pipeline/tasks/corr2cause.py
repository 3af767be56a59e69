"""Corr2Cause: prompts, worked completions, and the one scorer that serves reward and evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import comb
from typing import Any

from pipeline.causal import claims, trace
from pipeline.causal.solver import NoDag
from pipeline.causal.text import Parsed, read_row, write_row
from pipeline.errors import UserError
from pipeline.tasks.yes_no import Answer, parse_answer

PROMPTS = {
    "default": (
        "You are an expert in causal reasoning. Given a premise describing statistical relationships between "
        "variables, determine if the stated causal hypothesis is consistent with the given information.\n\n"
        "Premise and Hypothesis:\n{input}\n\nThink step by step and provide your reasoning:"
    ),
    "paper": 'Question: {premise}\nCan we deduct the following: {claim}? Just answer "Yes" or "No."\n\nAnswer:',
}
"""`default` is seed 000's prompt, `paper` that of Jin et al. 2024 (arXiv 2306.05836) for direct answers."""


@dataclass(frozen=True)
class Step:
    """One reasoning step of a completion, judged by the causal engine."""

    text: str
    true: bool
    reason: str


@dataclass(frozen=True)
class Score:
    """Verdict on one completion. `correct` is None only where the reference cannot be graded."""

    correct: bool | None
    parsed: Answer | None
    steps: tuple[Step, ...]
    reason: str
    least_steps: int = 0
    """Steps that reasoning of this kind has at least."""

    @property
    def true_share(self) -> float:
        """Share of the reasoning steps before the first false one, of those that there should be; 0 without steps."""
        before = next((i for i, step in enumerate(self.steps) if not step.true), len(self.steps))
        return before / max(len(self.steps), self.least_steps) if self.steps else 0.0


def message(premise: str, hypothesis: str, prompt: str) -> str:
    """The user message for one row in the wording named `prompt`."""
    text = write_row(premise, hypothesis)
    return PROMPTS[prompt].format(input=text, premise=premise, claim=hypothesis.rstrip("."))


@lru_cache(maxsize=1 << 14)
def _parsed(premise: str, hypothesis: str) -> Parsed:
    return read_row(write_row(premise, hypothesis))


def worked(premise: str, hypothesis: str, style: trace.Style) -> str:
    """A completion that reasons to the exact answer (docs/trace.md). Raises UserError when no DAG fits the premise."""
    return trace.write(_parsed(premise, hypothesis), style)


def score(completion: str, row: Mapping[str, Any]) -> Score:
    """Judge a completion against a row with `premise`, `hypothesis` and `label` (0 or 1).

    An answer that cannot be parsed is incorrect. Steps are the statements of a trace (docs/trace.md), or the different
    claims about edges that another text makes: at least as many as there are pairs of variables, lest one claim that
    is sure to be true be all the reasoning. Of a premise that no DAG satisfies nothing is true, and none is judged.
    """
    parsed = _parsed(str(row["premise"]), str(row["hypothesis"]))
    try:
        judged = claims.check(completion, parsed)
    except NoDag:
        judged = []
    least = 0
    if not any(each.kind == "section" for each in judged):
        judged = list(dict.fromkeys(each for each in judged if each.kind != "conclusion"))
        least = comb(len(parsed.premise.names), 2)
    steps = tuple(Step(each.text, each.true, each.reason) for each in judged)
    return _graded(parse_answer(completion), row["label"], steps, least)


def score_published(completion: str, row: Mapping[str, Any]) -> Score:
    """Judge the answer of a completion against a row as published: `input` and `label` (0 or 1, maybe as text).

    No step is judged, so that rows in any wording can be scored. Raises UserError for a row without the text `input`.
    """
    if not isinstance(row.get("input"), str):
        raise UserError("a row has the text `input` and its `label`", value=str(dict(row))[:60], do="mend this row")
    label = row.get("label")
    return _graded(parse_answer(completion), int(label) if label in ("0", "1") else label)


def _graded(parsed: Answer | None, label: Any, steps: tuple[Step, ...] = (), least: int = 0) -> Score:
    if label not in (0, 1):
        return Score(None, parsed, steps, f"the label is {label!r}, neither 0 nor 1", least)
    wanted: Answer = "yes" if label == 1 else "no"
    if parsed is None:
        return Score(False, None, steps, "no answer could be parsed", least)
    return Score(parsed == wanted, parsed, steps, f"answered {parsed}, the label says {wanted}", least)
