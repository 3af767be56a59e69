"""Step credit: which tokens answer for which reasoning step, and what they get for it."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.causal.places import decided_at
from pipeline.tasks.corr2cause import score
from pipeline.training.step_credit import step_advantages, token_truth

ROW = {
    "premise": "Suppose there is a closed system of 4 variables, A, B, C and D. All the statistical relations among "
    "these 4 variables are as follows: A correlates with B. A correlates with C. A correlates with D. B correlates "
    "with C. C correlates with D. However, B and C are independent given A. B and C are independent given A and D. "
    "B is independent of D. C and D are independent given A. C and D are independent given A and B.",
    "hypothesis": "B causes something else which causes C.",
    "label": 1,
}
TRACE = (
    "Skeleton: A - B; A - C; A - D; B, C given A; B, D given nothing; C, D given A; Colliders: B > A < D; "
    "Edges: A < B; A > C; A < D; Paths: B > A > C; Check: B > A > C; Therefore: Yes"
)


def told(text: str, cut: int = 1) -> list[tuple[str, float]]:
    """Pieces of `cut` characters as tokens, and what each is marked with."""
    pieces = [text[i : i + cut] for i in range(0, len(text), cut)]
    marks = token_truth(range(len(pieces)), score(text, ROW).steps, lambda ids: "".join(pieces[i] for i in ids))
    return list(zip(pieces, marks, strict=True))


def part(marked: list[tuple[str, float]], value: float) -> str:
    """The text of all tokens with this mark."""
    return "".join(piece for piece, mark in marked if mark == value)


@pytest.mark.parametrize("cut", [1, 3, 7])
def test_a_true_trace_is_true_to_its_last_token(cut: int) -> None:
    marked = told(TRACE, cut)
    assert [mark for _, mark in marked] == [1.0] * len(marked)


def test_the_first_false_statement_is_blamed_alone() -> None:
    marked = told(TRACE.replace("Edges: A < B; A > C;", "Edges: A < B; A < C;"))
    assert part(marked, 0.0) == " A < C;"
    assert part(marked, 1.0) == TRACE[: TRACE.index(" A > C; A < D; Paths")]
    assert all(math.isnan(mark) for _, mark in marked[TRACE.index(" A < D; Paths") :])


def test_a_section_that_lacks_something_is_blamed_where_it_closes() -> None:
    marked = told(TRACE.replace(" A > C; A < D; Paths", " A > C; Paths"))
    assert part(marked, 0.0) == " Paths:"


def test_a_wrong_answer_after_a_true_trace_is_blamed() -> None:
    assert part(told(TRACE.replace(": Yes", ": No")), 0.0) == " No"


def test_claims_of_free_text_are_found_where_they_stand() -> None:
    text = "I think A is adjacent to B. Also B -> D holds. No more."
    steps = score(text, ROW).steps
    assert [text[:end] for end in decided_at(text, [step.text for step in steps])] == [
        "I think A is adjacent to B",
        "I think A is adjacent to B. Also B -> D",
    ]
    assert part(told(text), 0.0) == ". Also B -> D"


def test_advantages_have_mean_zero_over_all_processes_and_none_without_steps() -> None:
    truth = torch.tensor([[1.0, 1.0, 0.0, torch.nan], [1.0, torch.nan, torch.nan, torch.nan]])
    worth = step_advantages(truth, lambda sums: sums)
    assert worth[truth.isnan()].tolist() == [0.0] * 4
    assert worth.sum().item() == pytest.approx(0, abs=1e-6)
    assert worth[0, 2].item() == pytest.approx(-math.sqrt(3))
    other = torch.tensor([4.0, 4.0])  # another process, with four true tokens
    both = step_advantages(truth, lambda sums: torch.cat([sums, other]))
    assert both[0, 2].item() == pytest.approx((0 - 7 / 8) / math.sqrt(7 / 64))
    assert step_advantages(torch.ones(2, 3), lambda sums: sums).tolist() == [[0.0] * 3] * 2
