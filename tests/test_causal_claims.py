"""Claims of free texts and of traces: found, sorted by kind, each true or false of its premise."""

from __future__ import annotations

import random

import pytest

from pipeline.causal import trace
from pipeline.causal.claims import check
from pipeline.causal.classes import classes
from pipeline.causal.relations import hypotheses
from pipeline.causal.text import Parsed, letters, read_premise, read_row, write_premise

ROW = read_row(
    "Premise: Suppose there is a closed system of 4 variables, A, B, C and D. All the statistical relations among "
    "these 4 variables are as follows: A correlates with C. A correlates with D. B correlates with C. B correlates "
    "with D. C correlates with D. However, A is independent of B. A and D are independent given B and C. A and D are "
    "independent given C. B and D are independent given A and C. B and D are independent given C.\n"
    "Hypothesis: A causes something else which causes D."
)


@pytest.mark.parametrize(
    ("text", "kind", "true"),
    [
        ("A and C are adjacent.", "adjacent", True),
        ("A is directly connected to C.", "adjacent", True),
        ("There is an edge between C and D.", "adjacent", True),
        ("We keep A - C.", "adjacent", True),
        ("A and B are adjacent.", "adjacent", False),
        ("A and B are not adjacent.", "not adjacent", True),
        ("There is no edge between A and D.", "not adjacent", True),
        ("So we remove the edge A - D.", "not adjacent", True),
        ("B is not connected to C.", "not adjacent", False),
        ("This gives the v-structure A -> C <- B.", "v-structure", True),
        ("A → C ← B", "v-structure", True),
        ("C is a collider between A and B.", "v-structure", True),
        ("A and B collide at C.", "v-structure", True),
        ("A -> D <- B", "v-structure", False),
        ("Orient C -> D.", "orientation", True),
        ("D ← C by Meek's first rule", "orientation", True),
        ("D -> C", "orientation", False),
        ("B directly causes C", "orientation", True),
        ("Therefore: Yes", "conclusion", True),
        ("Therefore: No", "conclusion", False),
    ],
)
def test_one_claim(text: str, kind: str, true: bool) -> None:
    (found,) = check(text, ROW)
    assert (found.kind, found.true) == (kind, true)
    assert (found.reason == "") == true


def test_claims_come_in_the_order_of_the_text() -> None:
    text = (
        "First, A and B are not adjacent, as A is independent of B. A -> C <- B is a v-structure. Then C -> D, "
        "for D <- C is the only way. Banana and Apple are adjacent. Therefore: Yes"
    )
    found = check(text, ROW)
    assert [(each.kind, each.true) for each in found] == [
        ("not adjacent", True), ("v-structure", True), ("orientation", True), ("orientation", True),
        ("conclusion", True),
    ]  # fmt: skip


def test_an_open_direction_is_no_orientation() -> None:
    row = Parsed(read_premise(write_premise([], letters(2))), hypotheses(2)[0])
    (found,) = check("A -> B", row)
    assert (found.true, found.reason) == (False, "the premise leaves the direction open")


@pytest.mark.parametrize("n", [4, 5, 6])
def test_written_traces_are_claims_of_every_kind_and_true(n: int) -> None:
    rng = random.Random(n)
    kinds = set()
    for each in rng.sample(classes(n), min(len(classes(n)), 30)):
        premise = read_premise(write_premise(each.independences(), letters(n)))
        for asked in rng.sample(hypotheses(n), 6):
            row = Parsed(premise, asked)
            for style in ("full", "short"):
                found = check(trace.write(row, style), row)
                assert all(claim.true for claim in found)
                kinds |= {claim.kind for claim in found}
            (only,) = check(trace.write(row, "answer"), row)
            assert only.kind == "conclusion" and only.true
    assert kinds == {"adjacent", "not adjacent", "v-structure", "orientation", "path", "section", "conclusion"}


def test_text_without_claims_has_none() -> None:
    assert check("I cannot tell.", ROW) == []
