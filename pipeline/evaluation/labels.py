"""What the causal engine knows of a set of rows: the exact labels, the released ones, which published test it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Literal

from pipeline.causal.enumeration import RELEASED
from pipeline.causal.files import Choice, Config, texts
from pipeline.causal.released import ENTAILED, Version, labelled_with, splits, verdicts
from pipeline.causal.solver import answer
from pipeline.causal.text import Parsed, read_row, write_row
from pipeline.errors import UserError
from pipeline.evaluation.baselines import Row

TestVersion = Literal["v2", "v1", "paraphrase", "refactorization"]
PUBLISHED: dict[TestVersion, tuple[Version, Config]] = {
    "v2": ("v2", "default"),
    "v1": ("v1", "default"),
    "paraphrase": ("v1", "perturbation_by_paraphrasing"),
    "refactorization": ("v1", "perturbation_by_refactorization"),
}
"""The released tests: v2 is what is downloaded today, v1 and its two perturbations are those of the paper's tables."""
SIZES = {"v2": 1162, "v1": 2246, "paraphrase": 2246, "refactorization": 2246}

Key = tuple[object, ...]


def parsed(rows: Sequence[Row]) -> list[Parsed] | None:
    """The rows as the engine reads them; None when one of them is in a wording that it does not read."""
    try:
        return [read_row(write_row(row.premise_id, row.hypothesis)) for row in rows]
    except UserError:
        return None


def exact_labels(rows: Sequence[Parsed]) -> list[int] | None:
    """The solver's label of each row; None when one is not settled (above six variables only)."""
    found = [answer(row) for row in rows]
    return None if any(each.verdict == "undecided" for each in found) else [each.label for each in found]


def released_labels(rows: Sequence[Parsed]) -> list[int] | None:
    """The label that the published data give each row; None when a premise is not one of theirs.

    None also where two rows say the same: so it is in the first edition only, whose labels depend on their wording.
    """
    if len({(row.premise.independences, row.premise.names, row.hypothesis) for row in rows}) < len(rows):
        return None
    found = [labelled_with(row.premise, row.hypothesis, RELEASED) for row in rows]
    known = [label for label in found if label is not None]
    return known if len(known) == len(found) else None


def published_test(rows: Sequence[Row]) -> TestVersion | None:
    """Which published test these rows are, whole and with its released labels, in whatever order; else None."""
    for version in PUBLISHED:
        if SIZES[version] == len(rows):
            own = Counter(_key(version, row.premise_id, row.hypothesis, row.label) for row in rows)
            if own == _published(version):
                return version
    return None


@cache
def _published(version: TestVersion) -> Counter[Key]:
    edition, config = PUBLISHED[version]
    test = splits(edition, "released", 6)["test"]
    labels = (verdicts(test, RELEASED) == ENTAILED).astype(int)
    found: Counter[Key] = Counter()
    for text, label, _, _ in texts(test, labels, Choice(version=edition, config=config), "test"):
        premise, _, hypothesis = text.removeprefix("Premise:").partition("\nHypothesis:")
        found[_key(version, premise.strip(), hypothesis.strip(), label)] += 1
    return found


def _key(version: TestVersion, premise: str, hypothesis: str, label: int) -> Key:
    """What a row is told by: of v2 the meaning, because the phrase of an indirect cause was drawn at random."""
    return (premise, _meaning(premise, hypothesis) if version == "v2" else hypothesis, label)


def _meaning(premise: str, hypothesis: str) -> object:
    try:
        return read_row(write_row(premise, hypothesis)).hypothesis
    except UserError:
        return hypothesis
