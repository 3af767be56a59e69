"""The published numbers: well-formed, sourced, and possible counts of the test that they are said to be of."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.evaluation.leaderboard import LEADERBOARD, Result, published_tables, read_leaderboard

ROWS, VALID = 2246, 342
TABLES = read_leaderboard()
LINES = [(table, line) for table in TABLES for line in table.results]
COUNTED = [line for table, line in LINES if table.test == "v1" and line.valid is None and not line.mean_of_draws]


def near(value: float, printed: float | None) -> bool:
    """Rounded or cut to two places."""
    return printed is None or abs(100 * value - printed) <= 0.0101


def possible(line: Result, rows: int, valid: int) -> bool:
    """Whether some true and false positives give all four printed numbers."""
    for tp in range(valid + 1):
        if not near(tp / valid, line.recall):
            continue
        for fp in range(rows - valid + 1):
            f1, accuracy = 2 * tp / (tp + fp + valid), (tp + rows - valid - fp) / rows
            if near(f1, line.f1) and near(tp / max(tp + fp, 1), line.precision) and near(accuracy, line.accuracy):
                return True
    return False


@pytest.mark.parametrize("line", COUNTED, ids=lambda line: line.model)
def test_printed_numbers_are_counts_of_the_test(line: Result) -> None:
    assert possible(line, ROWS, VALID)


def test_they_are_no_counts_of_the_other_edition() -> None:
    assert sum(possible(line, 1162, 180) for line in COUNTED) <= 2  # those that never say Yes


def test_recall_by_relation_is_of_the_stated_rows() -> None:
    lines = [line for _, line in LINES if line.valid is not None]
    assert sum(line.valid or 0 for line in lines) == VALID
    for line in lines:
        assert any(near(tp / (line.valid or 1), line.recall) for tp in range((line.valid or 0) + 1)), line.model


def test_every_table_has_a_source_and_names_each_model_once() -> None:
    for table in TABLES:
        assert "arXiv" in table.source
        names = [line.model for line in table.results]
        assert len(names) == len(set(names))
    best = max(line.f1 for table in published_tables("v1") for line in table.results if line.valid is None)
    assert best == 94.74


def test_a_table_stands_beside_its_own_test_only() -> None:
    assert {table.test for table in published_tables("v1")} == {"v1"}
    assert len(published_tables("refactorization")) == 1
    for other in (None, "v2", "unstated", ""):
        assert published_tables(other) == []


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [("f1: 29.08", "f1: 129.08", "f1"), ("    test: v1", "    test: v3", "test"), ("f1: 29.08", "score: 29.08", "f1")],
)
def test_a_wrong_entry_is_named(tmp_path: Path, old: str, new: str, part: str) -> None:
    path = tmp_path / "leaderboard.yaml"
    path.write_text(LEADERBOARD.read_text(encoding="utf-8").replace(old, new, 1), encoding="utf-8")
    with pytest.raises(UserError, match=part):
        read_leaderboard(path)
