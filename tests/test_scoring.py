"""The verb `score`: every line judged in its place, malformed ones named, the output whole or not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import main
from pipeline.errors import UserError
from pipeline.scoring import score_file
from pipeline.tasks.corr2cause import score, worked

PREMISE = (
    "Suppose there is a closed system of 2 variables, A and B. All the statistical relations among these 2 variables "
    "are as follows: A correlates with B."
)
INPUT = f"Premise: {PREMISE}\nHypothesis: A directly causes B."


def line(completion: Any, label: Any = 0, **more: Any) -> str:
    return json.dumps({"row": {"input": INPUT, "label": label, "num_variables": 2}, "completion": completion, **more})


def scored(tmp_path: Path, *lines: str | bytes, code: int = 0) -> list[dict[str, Any]]:
    """What the verb makes of these lines."""
    path, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    path.write_bytes(b"\n".join(each if isinstance(each, bytes) else each.encode() for each in lines))
    assert main(["score", "corr2cause", str(path), "--out", str(out)]) == code
    assert sorted(each.name for each in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]
    return [json.loads(each) for each in out.read_text(encoding="utf-8").split("\n")[:-1]]


def test_lines_come_out_in_order_with_three_keys_more(tmp_path: Path) -> None:
    given = [
        line("Therefore: No", id=7),
        line("Therefore: Yes"),
        line("I cannot say"),
        line("No\u2028", "1"),
        line("", 1),
    ]
    found = scored(tmp_path, *given)
    verdicts = [(each.pop("correct"), each.pop("parsed"), bool(each.pop("reason"))) for each in found]
    assert found == [json.loads(each) for each in given]
    assert verdicts == [
        (True, "no", True), (False, "yes", True), (False, None, True), (False, "no", True), (False, None, True),
    ]  # fmt: skip


@pytest.mark.parametrize("label", [None, 2, -1, "maybe", "", 0.5, [1], {"a": 1}])
def test_a_row_without_a_usable_label_cannot_be_graded(tmp_path: Path, label: Any) -> None:
    found = scored(tmp_path, line("Therefore: No", label))
    assert (found[0]["correct"], found[0]["parsed"]) == (None, "no")
    assert "neither 0 nor 1" in found[0]["reason"]


def test_a_row_that_lacks_its_label_cannot_be_graded(tmp_path: Path) -> None:
    found = scored(tmp_path, json.dumps({"row": {"input": INPUT}, "completion": "Yes"}))
    assert (found[0]["correct"], found[0]["parsed"]) == (None, "yes")


@pytest.mark.parametrize("label", [0, 1, "0", "1", True, False, 1.0])
def test_labels_count_as_numbers_or_as_the_text_of_a_table(tmp_path: Path, label: Any) -> None:
    assert scored(tmp_path, line("Therefore: Yes", label))[0]["correct"] is (int(label) == 1)


MALFORMED: list[str | bytes] = [
    "",
    "not json",
    line("Therefore: No")[:-9],
    "[1]",
    '"text"',
    "null",
    json.dumps({"completion": "Yes"}),
    json.dumps({"row": {"input": INPUT, "label": 1}}),
    json.dumps({"row": "A causes B", "completion": "Yes"}),
    json.dumps({"row": {"label": 1}, "completion": "Yes"}),
    json.dumps({"row": {"input": 5, "label": 1}, "completion": "Yes"}),
    line(None),
    line(["Yes"]),
    line("Yes", float("nan")),
    b'{"row": "\xff\xfe"}',
    "[" * 100_000,
    '{"row": 1' + "0" * 5000 + "}",
]


@pytest.mark.parametrize("bad", MALFORMED, ids=range(len(MALFORMED)))
def test_a_malformed_line_is_named_and_the_others_are_scored(
    tmp_path: Path, bad: str | bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    found = scored(tmp_path, line("Therefore: No"), bad, line("Therefore: Yes"), code=1)
    assert [each.get("correct") for each in found] == [True, None, False]
    assert found[1].keys() == {"line", "error"}
    assert found[1]["line"] == 2
    told = capsys.readouterr().err
    assert "line 2: " in told
    assert "1 correct, 1 incorrect, 0 cannot be graded; 0 without an answer; 1 malformed" in told


def test_many_malformed_lines_are_not_all_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert [each["line"] for each in scored(tmp_path, *["x"] * 50, code=1)] == list(range(1, 51))
    told = capsys.readouterr().err
    assert "line 10: " in told and "line 11: " not in told and "40 malformed lines more" in told


def test_without_a_file_for_them_the_lines_go_to_standard_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = scored(tmp_path, line("Therefore: No"), "x", code=1)
    capsys.readouterr()
    assert main(["score", "corr2cause", str(tmp_path / "in.jsonl")]) == 1
    told = capsys.readouterr()
    assert [json.loads(each) for each in told.out.splitlines()] == found
    assert "1 malformed: standard output" in told.err


def test_odd_texts_survive(tmp_path: Path) -> None:
    odd = ["\ud800 Therefore: No", "a\u2028b\x85c\r\nTherefore: No", "因为。Therefore：No", "\x00 Therefore: No"]
    found = scored(tmp_path, b"\xef\xbb\xbf" + line(odd[0]).encode(), *map(line, odd[1:]))
    assert [each["completion"] for each in found] == odd
    assert all(each["correct"] for each in found)


def test_windows_line_ends_and_a_last_newline_are_no_matter(tmp_path: Path) -> None:
    assert len(scored(tmp_path, line("Yes") + "\r", line("No") + "\r", "")) == 2


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["corr2caus", "in.jsonl", "--out", "out.jsonl"], "did you mean 'corr2cause'"),
        (["corr2cause", "absent.jsonl", "--out", "out.jsonl"], "cannot read: 'No such file or directory'"),
        (["corr2cause", ".", "--out", "out.jsonl"], "cannot read: 'Is a directory'"),
        (["corr2cause", "empty.jsonl", "--out", "out.jsonl"], "a file without lines"),
        (["corr2cause", "in.jsonl", "--out", "no/such/out.jsonl"], "cannot write"),
        (["corr2cause", "in.jsonl", "--out", "folder"], "cannot write"),
    ],
)
def test_what_cannot_be_done_leaves_no_output(
    tmp_path: Path, arguments: list[str], told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in.jsonl").write_text(line("Yes"))
    Path("empty.jsonl").touch()
    Path("folder").mkdir()
    assert main(["score", *arguments]) == 2
    assert told in capsys.readouterr().err
    assert sorted(each.name for each in tmp_path.rglob("*")) == ["empty.jsonl", "folder", "in.jsonl"]


def test_an_interrupted_scoring_leaves_the_old_output(tmp_path: Path) -> None:
    path, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    path.write_text(line("Yes"))
    score_file("corr2cause", path, out)
    before = out.read_bytes()
    path.write_text("")
    with pytest.raises(UserError, match="a file without lines"):
        score_file("corr2cause", path, out)
    assert out.read_bytes() == before


def test_the_verb_and_training_judge_alike(tmp_path: Path) -> None:
    texts = [worked(PREMISE, "A directly causes B.", "full"), "Therefore: Yes", "nothing", "The answer is not no"]
    for each, text in zip(scored(tmp_path, *map(line, texts)), texts, strict=True):
        other = score(text, {"premise": PREMISE, "hypothesis": "A directly causes B.", "label": 0})
        assert (each["correct"], each["parsed"], each["reason"]) == (other.correct, other.parsed, other.reason)


def test_rows_in_any_wording_are_scored(tmp_path: Path) -> None:
    text = json.dumps({"row": {"input": "Is A a cause of B?", "label": 1}, "completion": "Yes."})
    assert scored(tmp_path, text)[0]["correct"] is True
