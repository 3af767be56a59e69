"""The engine's verbs as a user types them: what they write, print and refuse, and their exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.cli import main

PREMISE = (
    "Premise: Suppose there is a closed system of 3 variables, A, B and C. All the statistical relations among these 3 "
    "variables are as follows: A correlates with C. B correlates with C. However, A is independent of B."
)
ROW = PREMISE + "\nHypothesis: A directly causes C."


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("released")
    assert main(["corr2cause", "generate", "--out", str(folder), "--max-variables", "4"]) == 0
    return folder


def test_generate_says_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["corr2cause", "generate", "--out", str(tmp_path), "--max-variables", "3", "--labels", "corrected"]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert f"{tmp_path}/test.csv: 54 rows, 3 valid, 0 labels changed" in told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["changes.csv", "dev.csv", "test.csv", "train.csv"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--labels", "fixed"], "valid: clean, corrected, released"),
        (["--config", "perturbation_by_paraphrasing", "--version", "v2"], "use --version v1"),
        (["--max-variables", "7"], "2 to 6"),
        (["--format", "xlsx"], "--format"),
        (["--variables", "40"], "2 to 24"),
        (["--variables", "5", "--rows", "10"], "--rows"),
        (["--variables", "5", "--wording", "absent.yaml"], "absent.yaml"),
        (["--out", "/proc/none"], "cannot write"),
    ],
)
def test_what_generate_refuses(tmp_path: Path, words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["corr2cause", "generate", "--out", str(tmp_path), "--max-variables", "3", *words]) == 2
    error = capsys.readouterr().err
    assert told in error and "->" in error and error.count("\n") == 1


def test_solve_writes_a_line_a_row(released: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "answers.jsonl"
    assert main(["corr2cause", "solve", str(released / "test.csv"), "--out", str(out)]) == 0
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [row["row"] for row in rows] == list(range(126))
    assert {row["verdict"] for row in rows} == {"valid", "invalid"}
    assert "1 of 126 labels differ" in capsys.readouterr().err


def test_solve_ends_with_1_when_a_row_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(f'input,label\n"{ROW}",1\n"{ROW[:100]}",1\n', encoding="utf-8")
    assert main(["corr2cause", "solve", str(path)]) == 1
    shown = capsys.readouterr()
    assert [json.loads(line)["row"] for line in shown.out.splitlines()] == [0, 1]
    assert "1 valid; 1 unreadable" in shown.err


def test_solve_answers_a_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "premise.txt"
    path.write_text(PREMISE, encoding="utf-8")
    assert main(["corr2cause", "solve", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 18
    assert "valid         A directly causes C." in lines
    assert "invalid       C directly causes A.; not in A -> C, B -> C" in lines


def test_explain_then_check_is_all_true(released: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    traces, claims = (tmp_path / name for name in ("traces.jsonl", "claims.jsonl"))
    assert main(["corr2cause", "explain", str(released / "dev.csv"), "--out", str(traces)]) == 0
    lines = traces.read_text(encoding="utf-8").splitlines()
    assert main(["corr2cause", "check", str(traces), "--out", str(claims)]) == 0
    judged = [json.loads(line) for line in claims.read_text(encoding="utf-8").splitlines()]
    assert len(judged) == len(lines) == 120
    assert all(each["true"] and len(each["claims"]) > 5 for each in judged)
    traces.write_text('{"completion": "Yes"}\n' + lines[0].replace("Therefore: No", "Therefore: Yes"), encoding="utf-8")
    capsys.readouterr()
    assert main(["corr2cause", "check", str(traces)]) == 1
    shown = capsys.readouterr()
    bad, mutated = (json.loads(line) for line in shown.out.splitlines())
    assert "line 1" in bad["error"] and not mutated["true"]
    assert "1 rows, 1 false claims; 1 unreadable" in shown.err


def test_explain_one_row_in_three_lengths(released: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lengths = []
    for length in ("full", "short", "answer"):
        words = ["corr2cause", "explain", str(released / "test.csv"), "--row", "60", "--length", length]
        assert main(words) == 0
        lengths.append(len(json.loads(capsys.readouterr().out)["completion"]))
    assert lengths[0] > lengths[1] > lengths[2]
    assert main(["corr2cause", "explain", str(released / "test.csv"), "--row", "9999"]) == 2
    assert "no such row" in capsys.readouterr().err


def test_audit_tells_all_faults(released: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoiled = tmp_path / "spoiled.csv"
    contradiction = PREMISE.replace("B correlates with C. However,", "However, B is independent of C.")
    rows = [ROW, ROW, ROW[:90], ROW.replace("A directly causes C", "B directly causes A"), contradiction + ROW[-33:]]
    spoiled.write_text("input,label\n" + "".join(f'"{text}",1\n' for text in rows), encoding="utf-8")
    files = [str(spoiled), *(str(released / f"{name}.csv") for name in ("train", "dev", "test"))]
    assert main(["corr2cause", "audit", *files, "--json", "--limit", "80"]) == 1
    found = json.loads(capsys.readouterr().out)
    first = found["files"][0]
    assert (first["rows"], first["unreadable"]["count"], first["valid"]) == (5, 1, 4)
    assert first["unreadable"]["first"][0].startswith("row 2: ")
    assert first["duplicates"] == {"same text": 1, "same meaning": 1}
    assert first["labels"]["paths"]["first"] == [3]
    assert first["letters"]["effect first"] == {"rows": 1, "valid": 1}
    train, dev, test = found["files"][1:]
    assert [each["labels"]["paths"]["disagree"] for each in (train, dev, test)] == [4, 2, 1]
    assert [each["released bugs"]["names"]["count"] for each in (train, dev, test)] == [4, 2, 1]
    assert train["lengths"]["over the limit"] > 0
    shared = {tuple(Path(name).stem for name in each["files"]): each for each in found["leaks"]}
    assert shared["dev", "test"]["same classes up to renaming"] == 1
    assert shared["train", "test"]["same classes up to renaming"] == 0
    assert main(["corr2cause", "audit", files[3]]) == 0
    assert "labels against the solver" in capsys.readouterr().out


def test_the_verbs_have_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["corr2cause", "--help"]) == 0
    told = capsys.readouterr().out
    assert all(verb in told for verb in ("generate", "solve", "explain", "check", "audit"))
    assert main(["corr2cause", "dissect"]) == 2
