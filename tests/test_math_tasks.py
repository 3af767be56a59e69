"""Math tasks: final answers found and compared by value, references that cannot be graded, real solutions."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UserError
from pipeline.tasks import gsm8k, math, metamathqa
from pipeline.tasks.example import completion_text, prompt_text
from pipeline.tasks.math_answers import after_hashes, grade, number
from pipeline.tasks.names import TASKS, check_row, score

REAL = Path(__file__).parent.parent.parent / "shared/data"


def real(name: str) -> list[dict[str, Any]]:
    """Rows of a real file; skips, saying so, where it is absent."""
    path = REAL / name
    if not path.is_file():
        pytest.skip(f"REAL DATA ABSENT: {path}")
    text = path.read_text(encoding="utf-8")
    rows: list[dict[str, Any]] = (
        json.loads(text) if path.suffix == ".json" else [json.loads(x) for x in text.splitlines()]
    )
    return rows


@pytest.mark.parametrize(
    ("completion", "reference"),
    [
        ("so 6 * 12\n#### 72", "72"),
        ("#### 1,080", "1080"),
        ("#### $5.00", "5"),
        ("#### -$5", "-5"),
        ("#### 18 dollars", "18"),
        ("#### **18**", "18"),
        ("#### 40%", "40"),
        ("#### 1. Add the eggs\n#### 2. Sell them\nIt is \\boxed{18}.", "18"),
        ("#### Step 2\nThe answer is 18.", "18"),
        ("#### 18\n\nQuestion: and what is 3 + 4?\n#### 7", "18"),
        ("#### $\\frac{1}{2}$", "0.5"),
        ("<think>12? no, \\boxed{12}</think> It is \\boxed{18}.", "18"),
        ("It is 12. The final answer is 18", "18"),
        ("Each has 12, together they have 18", "18"),
        ("\\boxed{\\frac{1}{2}}", "\\frac12"),
        ("\\boxed{\\dfrac{3}{6}}", "0.5"),
        ("\\boxed{0.333333333}", "\\frac{1}{3}"),
        ("\\boxed{90}", "90^\\circ"),
        ("\\boxed{15\\text{ cm}^2}", "15\\mbox{ cm}^2"),
        ("\\boxed{36}", "\\$36"),
        ("\\boxed{32348}", "\\$32,\\!348"),
        ("\\boxed{[-2, 7]}", "x \\in [-2,7]"),
        ("\\boxed{(2,12)\\cup(12,102)}", "(2,12) \\cup (12,102)"),
        ("\\boxed{(-\\infty, 0]}", "(-\\infty,0]"),
        ("\\boxed{3, 5, 7}", "7,5,3"),
        ("\\boxed{1+\\sqrt{19}, 1-\\sqrt{19}}", "1 \\pm \\sqrt{19}"),
        ("\\boxed{(x-1)^2}", "x^2-2x+1"),
        ("\\boxed{y=3+2x}", "y = 2x + 3"),
        (
            "\\boxed{\\begin{pmatrix} -1/3 \\\\ 2/3 \\end{pmatrix}}",
            "\\begin{pmatrix} -\\frac13 \\\\ \\frac23 \\end{pmatrix}",
        ),
        ("\\boxed{Evelyn}", "\\text{Evelyn}"),
        ("\\boxed{B}", "\\text{(B)}"),
        ("[0,1)", "[0,1)"),
        ("2 - 2p", "-2p + 2"),
    ],
)  # fmt: skip
def test_the_same_value_is_correct(completion: str, reference: str) -> None:
    verdict = grade(completion, reference)
    assert verdict.correct is True and verdict.share == 1, verdict


@pytest.mark.parametrize(
    ("completion", "reference", "share"),
    [
        ("#### 73", "72", 0),
        ("#### 18\n#### 72", "72", 0),
        ("\\boxed{71} \\boxed{72}", "72", 0),
        ("#### 72.5", "72", 0),
        ("<think>it is 72", "72", 0),
        ("", "72", 0),
        ("I do not know", "72", 0),
        ("\\boxed{(2, 7)}", "[2,7]", 0),
        ("\\boxed{(3, 2)}", "(2, 3)", 0),
        ("\\boxed{(1, 2, 4)}", "(1, 2, 3)", 2 / 3),
        ("\\boxed{\\{1, 3\\}}", "\\{1, 2\\}", 0.5),
        ("\\boxed{\\{1,2,3,4,5,6,7,8\\}}", "\\{1, 9\\}", 0),
        ("\\boxed{9^{9^{9^{9}}}}", "5", 0),
        ("\\boxed{" + "(" * 3000 + "}", "5", 0),
        ("\\boxed{even}", "\\text{odd}", 0),
    ],
)
def test_another_value_is_incorrect(completion: str, reference: str, share: float) -> None:
    verdict = grade(completion, reference)
    assert verdict.correct is False and verdict.share == share, verdict


@pytest.mark.parametrize("reference", [None, "", "  ", "\\begin{"])
def test_without_a_readable_reference_nothing_is_graded(reference: str | None) -> None:
    assert grade("\\boxed{5}", reference).correct is None


def test_numbers_are_read_whole_or_not_at_all() -> None:
    assert [str(number(each)) for each in ("1,000", "$ -.5", "-3", "18 apples.", "7.")] == [
        "1000",
        "-1/2",
        "-3",
        "18",
        "7",
    ]
    assert not [each for each in ("1,00", "3 + 4", "1/2", "12 of 13", "x", "", ".", "- -3", "1e5") if number(each)]


def test_no_answer_is_parsed_from_nothing() -> None:
    assert grade("no idea", "5").parsed is None
    assert grade("#### 6", "5").parsed == "6"


def test_every_row_of_gsm8k_grades_its_own_answer() -> None:
    rows = real("gsm8k/train.jsonl") + real("gsm8k/test.jsonl")
    assert len(rows) == 8792
    for row in rows:
        worked = gsm8k.example(row)
        assert "<<" not in str(worked.solution)
        completion = completion_text(worked, "math_hash")
        assert completion and gsm8k.score(completion, row).correct is True
        answer = number(str(worked.answer))
        assert answer is not None
        assert gsm8k.score(f"#### {answer + 1}", row).correct is False


def test_solutions_of_math_are_correct_and_those_of_other_rows_are_not() -> None:
    rows = real("math/math500_test.json")[:200]
    for row in rows:
        assert math.score(row["solution"], row).correct is True, row["answer"]
        without = {key: row[key] for key in ("problem", "solution")}
        assert math.score(row["solution"], without).correct is True
    wrong = [math.score(one["solution"], two) for one, two in pairwise(rows)]
    right = [row["answer"] for row, verdict in zip(rows[1:], wrong, strict=True) if verdict.correct]
    assert right == ["x=5", "7"]  # the rows before them have 5 and 7


META = {
    "query": "Gracie and Joe choose numbers. What is the distance?",
    "response": "They are far apart.\nThe distance is $10$.\n#### 10\nThe answer is: 10",
    "type": "MATH_AnsAug",
    "original_question": "...",
}


def test_metamathqa_ends_in_its_answer() -> None:
    assert metamathqa.example(META).answer == "10"
    assert metamathqa.example(META).solution == "They are far apart.\nThe distance is $10$."
    assert metamathqa.score("\\boxed{10}", META).correct is True
    assert metamathqa.score("\\boxed{11}", META).correct is False
    latex = META | {"response": "So.\nThe answer is: \\frac{1}{2}"}
    assert metamathqa.score("0.5", latex).correct is True
    assert metamathqa.score("5", META | {"response": "It is 5."}).correct is None


def test_an_unfinished_solution_in_the_style_of_gsm8k_has_no_answer() -> None:
    row = {"question": "q", "answer": "2 + 3 = <<2+3=5>>5\n#### 5"}
    assert gsm8k.score("2 + 3 = <<2+3=5>>5", row).parsed is None
    assert gsm8k.score("2 + 3 = <<2+3=5>>5", row).correct is False
    assert gsm8k.score("2 + 3 = <<2+3=5>>5\n#### 5", row).correct is True
    assert gsm8k.score("2 + 3 = 5", row).correct is True


def test_templates_word_prompt_and_answer_alike() -> None:
    row = {"question": "What is {2} + 3?", "answer": "2 + 3 = <<2+3=5>>5\n#### 5"}
    made = gsm8k.example(row)
    assert prompt_text(made, "math_cot").startswith("What is {2} + 3?\n\n")
    assert completion_text(made, "math_cot") == "2 + 3 = 5\n\\boxed{5}"
    assert completion_text(made, "math_hash") == "2 + 3 = 5\n#### 5"
    assert completion_text(made, "math_answer") == "\\boxed{5}"
    boxed = math.example({"problem": "p", "solution": "so $\\boxed{5}$."})
    assert completion_text(boxed, "math_cot") == "so $\\boxed{5}$."


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        ("\\boxed{\\frac{1}{2}} ", "\\frac{1}{2}"),
        ("\\boxed{1} or \\fbox{2}", "2"),
        ("$\\boxed 3$", "3"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("\\boxed{1", None),
        ("none", None),
    ],
)
def test_what_a_box_holds(text: str, inside: str | None) -> None:
    assert math.boxed(text) == inside


@pytest.mark.parametrize(
    ("task", "row", "told"),
    [
        ("gsm8k", {"question": "q"}, "row 3 of x: field `answer` is missing"),
        ("gsm8k", {"question": 5, "answer": "a"}, "row 3 of x: field `question` is not a str: '5'"),
        ("math", {"problem": "p"}, "row 3 of x: field `solution` is missing"),
        ("mbpp", {"text": "t", "code": "c", "test_list": "x"}, "row 3 of x: field `test_list` is not a list"),
        ("magicoder", {"instruction": "i"}, "row 3 of x: field `response` is missing"),
    ],
)
def test_a_row_of_another_format_is_named_with_its_field(task: str, row: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError) as caught:
        check_row(task, row, "row 3 of x")
    assert str(caught.value).startswith(told)
    with pytest.raises(UserError):
        score(task, "x", row)


def test_every_task_scores_nothing_without_crashing() -> None:
    for task, module in TASKS.items():
        row = {field: kind() for field, kind in module.FORMATS[0].items()}
        if task != "humaneval":  # whose tests must be tests
            assert module.score("", row).correct is None


def test_hashes() -> None:
    assert after_hashes("#### 5\n") == "5" and after_hashes("5 #### 6") is None and after_hashes("##### 5") is None
