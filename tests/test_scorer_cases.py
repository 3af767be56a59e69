"""What a completion answers: the cases in scorer_cases.yaml, each parsed and each scored against either label."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.settings import read_yaml
from pipeline.tasks.corr2cause import score
from pipeline.tasks.yes_no import parse_answer

CASES = read_yaml(Path(__file__).parent / "scorer_cases.yaml")
ALL = [(completion, answer) for cases in CASES.values() for completion, answer in cases]

ROW = {
    "premise": "Suppose there is a closed system of 2 variables, A and B. All the statistical relations among these 2 "
    "variables are as follows: A correlates with B.",
    "hypothesis": "A directly causes B.",
}


@pytest.mark.parametrize(("completion", "answer"), ALL)
def test_answers_are_parsed(completion: str, answer: str | None) -> None:
    assert parse_answer(completion) == answer


@pytest.mark.parametrize(("completion", "answer"), ALL)
def test_a_score_is_right_wrong_or_unparsable(completion: str, answer: str | None) -> None:
    for label, wanted in ((1, "yes"), (0, "no")):
        verdict = score(completion, {**ROW, "label": label})
        assert (verdict.correct, verdict.parsed) == (answer == wanted, answer)
    verdict = score(completion, {**ROW, "label": None})
    assert (verdict.correct, verdict.parsed) == (None, answer)


def test_there_are_enough_cases_and_none_twice() -> None:
    assert len(ALL) == len(dict(ALL)) >= 150
    assert {answer for _, answer in ALL} == {"yes", "no", None}


PIECES = [
    "answer is the ",
    "no, ",
    "<think>",
    "Therefore: ",
    "answer to is to ",
    "~~",
    "yes or ",
    "!",
    "\n",
    "not ",
    "a",
]


@pytest.mark.parametrize("piece", PIECES)
def test_time_grows_with_the_length_and_not_with_its_square(piece: str) -> None:
    assert parse_answer("answer" + piece * 30_000) is None
