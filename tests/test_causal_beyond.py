"""New rows in any number of variables and wording: right labels, balance, and sets that share no class."""

from __future__ import annotations

import csv
import re
from collections import Counter
from pathlib import Path

import pytest

from pipeline.causal.beyond import Choice, read_counts, read_numbers, write
from pipeline.causal.equivalence import canonical
from pipeline.causal.generate import Balance, Row, Style, sample
from pipeline.causal.solver import answer, solve
from pipeline.causal.sources import Dags
from pipeline.causal.splits import split_of
from pipeline.causal.text import read_row
from pipeline.causal.wording import load_wording
from pipeline.errors import UserError

STORY = """
name: bakery
opening: "A bakery keeps {n} records, {names}. Of these {n} it is known: "
correlated: "{x} goes with {y}."
independent: "{x} has nothing to do with {y}."
separated: "At the same {given}, {x} has nothing to do with {y}."
turn: " But "
nothing: ""
hypotheses:
  direct: ["{x} changes {y} itself."]
  indirect: ["{x} changes {y} by way of something else."]
  collider: ["{x} and {y} both change something."]
  confounder: ["Something changes both {x} and {y}."]
names: [flour, heat, rain, price, guests]
"""


def drawn(n: list[int], count: int, balance: Balance = "natural", style: Style = Style()) -> list[Row]:  # noqa: B008
    return sample("test", n, count, 0, balance, Dags(premises=20), style)


@pytest.mark.parametrize("n", [5, 6, 7, 10, 16, 24])
def test_labels_are_what_the_solver_reads_from_the_text(n: int) -> None:
    for row in drawn([n], 60, "label", Style(paraphrase=True)):
        parsed = read_row(row.input)
        assert answer(parsed).label == row.label
        assert split_of(canonical(solve(parsed.premise))[0]) == "test"
        assert parsed.premise.compact == (n > 6)
        assert len(parsed.premise.names) == row.num_variables == n


def test_a_pair_with_a_common_effect_is_named_in_either_order_only_with_paraphrases() -> None:
    """The published first edition and its perturbed sets do both; the second edition never does."""
    for paraphrase in (False, True):
        rows = drawn([5], 300, style=Style(paraphrase=paraphrase))
        asked = [row.hypothesis for row in rows if row.template in ("has_collider", "has_confounder")]
        named = [re.findall(r"\b[A-E]\b", each) for each in asked]
        orders = Counter(first < second for first, second in named)
        assert set(orders) == ({True, False} if paraphrase else {True}) and min(orders.values()) > 30


def test_a_share_of_the_rows_has_the_letters_of_the_refactorized_set() -> None:
    rows = drawn([5], 300, "label", Style(paraphrase=True, refactorize=0.25))
    parsed = [read_row(row.input) for row in rows]
    names = Counter(each.premise.names for each in parsed)
    assert set(names) == {tuple("ABCDE"), tuple("ZYXWV")} and 45 < names[tuple("ZYXWV")] < 105
    assert [answer(each).label for each in parsed] == [row.label for row in rows]
    assert drawn([5], 50, style=Style(refactorize=0.0)) == drawn([5], 50)


def test_sets_share_no_class_under_any_renaming(tmp_path: Path) -> None:
    choice = Choice((6, 7, 8), {"train": 300, "dev": 100, "test": 100}, "natural", 0, Dags(premises=30), Style())
    seen = {}
    for each in write(tmp_path, choice):
        with each.path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        assert len({row["input"] for row in rows}) == each.rows == choice.rows[each.path.stem]  # type: ignore[index]
        seen[each.path.stem] = {canonical(solve(read_row(row["input"]).premise))[0] for row in rows}
    assert all(seen.values())
    assert not seen["train"] & seen["dev"] and not seen["train"] & seen["test"] and not seen["dev"] & seen["test"]


def test_balance_by_template() -> None:
    rows = drawn([7], 600, "template")
    assert sum(row.label for row in rows) == 300
    cells = Counter((row.template, row.label) for row in rows)
    assert len(cells) == 12
    assert max(cells.values()) < 2 * min(cells.values())


def test_letters_follow_the_causes_only_without_relabelling() -> None:
    rates = {}
    for relabel in (True, False):
        rows = [row for row in drawn([6], 3000, style=Style(relabel)) if row.template == "child"]
        rates[relabel] = sum(row.label for row in rows) / len(rows)
    assert rates[False] == 0 < 0.1 < rates[True]


def test_a_story_is_told_in_its_own_words(tmp_path: Path) -> None:
    path = tmp_path / "bakery.yaml"
    path.write_text(STORY, encoding="utf-8")
    rows = drawn([4, 5], 40, style=Style(wording=load_wording(path)))
    assert all(row.premise.startswith("A bakery keeps ") for row in rows)
    assert {row.hypothesis.split()[0] for row in rows} >= {"flour", "Something"}
    with pytest.raises(UserError, match="names for 5 variables"):
        drawn([6], 1, style=Style(wording=load_wording(path)))


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("name: bakery", "title: bakery", "has the keys"),
        ("{x} goes with {y}.", "{x} goes along.", "correlated"),
        ("names: [flour, heat", "names: [flour, flour", "different names"),
        ("  direct:", "  straight:", "hypotheses are lists"),
        ("nothing: ", "nothing: [", "not YAML"),
    ],
)
def test_a_broken_wording_is_told_by_its_key(tmp_path: Path, old: str, new: str, told: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(STORY.replace(old, new), encoding="utf-8")
    with pytest.raises(UserError, match=told):
        load_wording(path)


def test_more_rows_than_there_are_is_refused() -> None:
    with pytest.raises(UserError, match="different rows"):
        sample("dev", [4], 10**6, 0)
    with pytest.raises(UserError, match="too few different classes"):
        sample("dev", [7], 10, 0, dags=Dags(degree=0.01, premises=5))


def test_numbers_are_read() -> None:
    assert read_numbers("7") == (7,)
    assert read_numbers("5,7-9") == (5, 7, 8, 9)
    assert read_counts("10, 2,3") == {"train": 10, "dev": 2, "test": 3}
    for bad in ("", "x", "1", "25", "7-60", "9-7"):
        with pytest.raises(UserError):
            read_numbers(bad)
    with pytest.raises(UserError):
        read_counts("10,2")
