"""Accuracy and pass@k: against counting by hand, with intervals, through prediction file, comparison and table."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from pipeline.errors import UserError
from pipeline.evaluation.compare import write_comparison
from pipeline.evaluation.predictions import Header
from pipeline.evaluation.schema import parse_comparison, read_comparison
from pipeline.evaluation.solved import (
    Answer,
    Solved,
    SolvedFile,
    compare_solved,
    mean_interval,
    pass_at_k,
    read_solved,
    write_solved,
)
from pipeline.evaluation.summary import difference_lines, result_table


@pytest.mark.parametrize(("answers", "right"), [(5, 0), (5, 2), (5, 5), (7, 1), (1, 1)])
def test_pass_at_k_is_the_share_of_draws_with_a_right_answer(answers: int, right: int) -> None:
    verdicts = [place < right for place in range(answers)]
    for k in range(1, answers + 1):
        drawn = [any(each) for each in combinations(verdicts, k)]
        assert pass_at_k(answers, right, k) == pytest.approx(sum(drawn) / len(drawn))
    with pytest.raises(ValueError, match="needs"):
        pass_at_k(answers, right, answers + 1)


def test_the_interval_is_that_of_a_share() -> None:
    values = np.array([1.0] * 300 + [0.0] * 100)
    found = mean_interval(values, 4000, 1)
    spread = 1.96 * (0.75 * 0.25 / 400) ** 0.5
    assert found.value == 0.75
    assert (found.low, found.high) == pytest.approx((0.75 - spread, 0.75 + spread), abs=0.006)
    assert mean_interval(values[:1], 10, 1).high == 1.0


def header(name: str, rows: int) -> Header:
    return Header(
        model="m", revision=None, model_fingerprint="f", recipe="r", run="run", stage=name, data_fingerprint="d",
        seed=1, created="now", generation={}, versions={}, rows=rows,
    )  # fmt: skip


def made(name: str, verdicts: Sequence[Sequence[bool | None]]) -> SolvedFile:
    rows = [
        Solved(
            id=f"gsm8k/{place}", row=place, task="gsm8k", prompt=f"p{place}",
            answers=[
                Answer(completion="it is 5", parsed=None if correct is False else "5", correct=correct, reason="",
                       share=float(correct is True), tokens=4, ended=True)
                for correct in answers
            ],
        )
        for place, answers in enumerate(verdicts)
    ]  # fmt: skip
    return SolvedFile(header=header(name, len(rows)), rows=rows)


ROWS: list[dict[str, Any]] = [{"id": f"gsm8k/{n}", "prompt": f"p{n}"} for n in range(40)]


def test_models_are_compared_and_shown(tmp_path: Path) -> None:
    base = made("base", [[n < 10, n < 2] for n in range(39)] + [[None, None]])
    sft = made("sft", [[n < 30, n < 34] for n in range(39)] + [[None, None]])
    files = {}
    for one in (base, sft):
        path = tmp_path / f"{one.header.stage}.jsonl"
        write_solved(path, one)
        files[path.stem] = read_solved(path, ROWS, "d")
        assert files[path.stem] == one
    comparison = compare_solved(files, ["sft"], "gsm8k", 500, 1, {"old": "why"})
    assert parse_comparison(comparison.model_dump(exclude_none=True)) == comparison
    result = comparison.solved["sft"]
    assert result.accuracy.value == pytest.approx((30 + 4 * 0.5) / 39)
    assert result.pass_at["1"] == result.accuracy and result.pass_at["2"].value == pytest.approx(34 / 39)
    assert (result.rows, result.not_graded, result.unparsable) == (40, 1, 9 + 5)
    pair = comparison.solved_pairs["sft-base"]
    assert (pair.fixed, pair.broken, pair.verdict) == (20, 0, "better")
    path = tmp_path / "comparison.json"
    write_comparison(path, comparison)
    assert read_comparison(path) == comparison
    console = Console(width=80, record=True, file=(tmp_path / "x").open("w"))
    console.print(result_table(comparison))
    shown = console.export_text()
    assert "pass@2 [95 %]" in shown and "0.872" in shown
    lines = difference_lines(comparison)
    assert lines[0].startswith("accuracy sft - base: +0.667") and lines[1] == "not counted: old: why"


def test_predictions_of_other_rows_or_data_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "base.jsonl"
    write_solved(path, made("base", [[True]] * 40))
    with pytest.raises(UserError, match="another version"):
        read_solved(path, ROWS, "other")
    with pytest.raises(UserError, match="other rows"):
        read_solved(path, ROWS[:-1], "d")
    path.write_text(path.read_text()[:-30])
    with pytest.raises(UserError, match="not a prediction file"):
        read_solved(path, ROWS, "d")


def test_a_model_that_says_nothing_is_not_counted() -> None:
    good = made("base", [[True]] * 3)
    silent = made("sft", [[False]] * 3)
    for row in silent.rows:
        row.answers[0] = row.answers[0].model_copy(update={"completion": "!!!!<pad>"})
    comparison = compare_solved({"base": good, "sft": silent}, ["sft"], "gsm8k", 10, 1, {})
    assert list(comparison.solved) == ["base"] and "only produces padding" in comparison.refused["sft"]
    with pytest.raises(UserError, match="only produces padding"):
        compare_solved({"sft": silent}, ["sft"], "gsm8k", 10, 1, {})
