"""The published files row for row: counts, labels, order, the three slips, the perturbations."""

from __future__ import annotations

import csv
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.causal import files
from pipeline.causal.enumeration import EXACT, RELEASED, Slips
from pipeline.causal.files import Choice, Config
from pipeline.causal.introsort import argsort
from pipeline.causal.released import KINDS, Version, satisfiable, splits, verdicts
from pipeline.causal.solver import answer
from pipeline.causal.text import read_row
from pipeline.errors import UserError

HEAD = Path(__file__).parent.parent.parent / "shared/data/corr2cause/train_head_2500.csv"
WRONG_TEST_ROWS = [115, 321, 458, 553, 631, 705, 731, 779, 788, 794, 810, 869, 920, 950, 983, 984, 1056, 1134]


def records(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("version", "sizes", "valid"),
    [
        ("v2", {"train": 205734, "dev": 1076, "test": 1162}, {"train": 38048, "dev": 139, "test": 180}),
        ("v1", {"train": 411452, "dev": 2246, "test": 2246}, {"train": 76580, "dev": 307, "test": 342}),
    ],
)
def test_sizes_and_valid_rows_are_the_published_ones(
    version: Version, sizes: dict[str, int], valid: dict[str, int]
) -> None:
    found = splits(version, "released", 6)
    assert {split: len(rows) for split, rows in found.items()} == sizes
    assert {split: int((verdicts(rows, RELEASED) == 1).sum()) for split, rows in found.items()} == valid


def test_the_first_edition_has_the_published_three_classes_and_recalls_per_relation() -> None:
    rows = splits("v1", "released", 6)["test"]
    found = verdicts(rows, RELEASED)
    assert np.bincount(found).tolist() == [712, 342, 1192]
    valid = Counter(KINDS[kind] for kind in rows.kind[found == 1].tolist())
    assert [valid[kind] for kind in KINDS] == [65, 33, 58, 28, 121, 37]


def test_the_second_edition_by_number_of_variables() -> None:
    rows = splits("v2", "released", 6)["test"]
    found = verdicts(rows, RELEASED) == 1
    by_n = {n: (int((rows.n == n).sum()), int(found[rows.n == n].sum())) for n in range(2, 7)}
    assert by_n == {2: (6, 0), 3: (48, 3), 4: (72, 0), 5: (514, 57), 6: (522, 120)}


@pytest.mark.parametrize(
    ("mended", "test", "dev", "train"),
    [(Slips(names=False), 18, 28, 6897), (Slips(names=False, confounders=False), 18, 33, 7389), (EXACT, 18, 33, 7991)],
)
def test_labels_that_each_slip_makes_wrong(mended: Slips, test: int, dev: int, train: int) -> None:
    found = splits("v2", "released", 6)
    changed = {s: (verdicts(rows, RELEASED) == 1) != (verdicts(rows, mended) == 1) for s, rows in found.items()}
    assert {s: int(each.sum()) for s, each in changed.items()} == {"test": test, "dev": dev, "train": train}
    assert np.flatnonzero(changed["test"]).tolist() == WRONG_TEST_ROWS


def test_twenty_premises_are_impossible() -> None:
    rows = splits("v2", "released", 6)["train"]
    six = rows.take(rows.n == 6)
    impossible = ~satisfiable(6)[six.unique]
    assert (int(impossible.sum()), len(set(six.unique[impossible].tolist()))) == (1800, 20)
    assert (verdicts(six.take(impossible), EXACT) == 2).all()


def test_clean_labels_are_right_where_the_released_premise_is_impossible() -> None:
    rows = splits("v2", "clean", 6)["test"]
    six = rows.take(rows.n == 6)
    odd = six.take(~satisfiable(6)[six.unique])
    labels = (verdicts(odd, EXACT, clean=True) == 1).astype(int)
    assert len(odd) and labels.any()
    for text, label, _, _ in files.texts(odd, labels, Choice("v2", 6, "clean", "default"), "test"):
        assert (answer(read_row(text)).verdict == "valid") == bool(label), text


def test_clean_sets_share_no_class_and_hold_every_one() -> None:
    found = splits("v2", "clean", 6)
    seen = {split: set(zip(rows.n.tolist(), rows.unique.tolist(), strict=True)) for split, rows in found.items()}
    assert sum(map(len, seen.values())) == len(set.union(*seen.values())) == 2 + 5 + 20 + 142 + 2201
    assert sum(map(len, found.values())) == 2 * 6 + 5 * 18 + 20 * 36 + 142 * 60 + 2201 * 90


@given(st.lists(st.integers(0, 4), max_size=300), st.integers(1, 4))
def test_the_sort_leaves_equal_keys_as_numpy_does(keys: list[int], runs: int) -> None:
    cut = [len(keys) * place // runs for place in range(runs + 1)]
    keys = [key for a, b in pairwise(cut) for key in sorted(keys[a:b])]
    assert argsort(keys) == np.argsort(np.array(keys, dtype=np.int8), kind="quicksort").tolist()


@pytest.mark.skipif(not HEAD.is_file(), reason=f"no released rows at {HEAD}")
def test_the_released_train_head_comes_out_row_for_row(tmp_path: Path) -> None:
    files.write(tmp_path, Choice())
    with (tmp_path / "train.csv").open(encoding="utf-8", newline="") as file:
        made = [row for row, _ in zip(csv.DictReader(file), range(2500), strict=False)]
    indirect = re.compile(
        r"(\w+) (?:causes something else which causes (\w+)|is a cause for (\w+), but not a direct one)\.$"
    )
    for mine, released in zip(made, records(HEAD), strict=True):
        texts = [
            indirect.sub(lambda m: f"{m[1]} indirectly causes {m[2] or m[3]}", each["input"])
            for each in (mine, released)
        ]
        assert texts[0] == texts[1]
        assert [mine[key] for key in ("label", "num_variables")] == [
            released[key] for key in ("label", "num_variables")
        ]
        if mine["input"] == released["input"]:
            assert mine["template"] == released["template"]
        else:
            assert {mine["template"], released["template"]} == {"non-parent ancestor", "non-child descendant"}
    assert len(made) == 2500


def test_corrected_files_list_what_they_change(tmp_path: Path) -> None:
    written = {each.path.stem: each for each in files.write(tmp_path / "corrected", Choice(labels="corrected", most=5))}
    files.write(tmp_path / "released", Choice(most=5))
    changes = records(tmp_path / "corrected/changes.csv")
    for split in ("train", "dev", "test"):
        before, after = (records(tmp_path / kind / f"{split}.csv") for kind in ("released", "corrected"))
        differ = [row for row, (a, b) in enumerate(zip(before, after, strict=True)) if a["label"] != b["label"]]
        assert [a["input"] for a in before] == [b["input"] for b in after]
        assert [int(each["row"]) for each in changes if each["split"] == split] == differ
        assert written[split].changed == len(differ)
    assert {each["premise"] for each in changes} == {"satisfiable"}


@pytest.mark.parametrize("config", ["perturbation_by_paraphrasing", "perturbation_by_refactorization"])
def test_perturbed_rows_stand_beside_those_of_the_first_edition(tmp_path: Path, config: Config) -> None:
    files.write(tmp_path / "plain", Choice("v1", 4))
    files.write(tmp_path / "other", Choice("v1", 4, config=config))
    back = str.maketrans("ZYXW", "ABCD")
    plain, other = (records(tmp_path / name / "test.csv") for name in ("plain", "other"))
    assert len(plain) == 12 + 90 + 144
    for a, b in zip(plain, other, strict=True):
        assert (a["template"], a["num_variables"]) == (b["template"], b["num_variables"])
        if config == "perturbation_by_paraphrasing":
            assert a["input"].partition("\n")[0] == b["input"].partition("\n")[0]
            assert a["label"] == str(int(b["label"] == "1"))
        else:
            assert "Suppose" in b["input"]
            letters = re.sub(r"\b[WXYZ]\b", lambda m: m[0].translate(back), b["input"])
            assert (letters, b["label"]) == (a["input"], a["label"])
    assert {row["label"] for row in other} == ({"0", "1", "2"} if "para" in config else {"0", "1"})


def test_parquet_has_the_same_rows(tmp_path: Path) -> None:
    from pyarrow import parquet

    files.write(tmp_path, Choice(most=4))
    files.write(tmp_path, Choice(most=4), "parquet")
    rows = parquet.read_table(tmp_path / "train.parquet").to_pylist()
    assert [{key: str(value) for key, value in row.items()} for row in rows] == records(tmp_path / "train.csv")


def test_the_seed_settles_the_phrases(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        files.write(tmp_path / name, Choice(most=4, seed=seed))
    texts = {name: (tmp_path / name / "train.csv").read_text(encoding="utf-8") for name in "abc"}
    assert texts["a"] == texts["b"] != texts["c"]


@pytest.mark.parametrize("choice", [Choice(config="perturbation_by_paraphrasing"), Choice(most=7), Choice(most=1)])
def test_what_was_never_published_is_refused(tmp_path: Path, choice: Choice) -> None:
    with pytest.raises(UserError, match="->"):
        files.write(tmp_path, choice)
    assert not list(tmp_path.iterdir())
