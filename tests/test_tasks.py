"""Corr2Cause as a task: answers, scores, prompts, files of rows, parts of a run."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.causal.files import Choice
from pipeline.causal.files import write as write_files
from pipeline.causal.generate import Row, sample
from pipeline.causal.trace import Style
from pipeline.errors import UserError, UserErrors
from pipeline.recipe_data import Data, Graphs
from pipeline.run import HOME
from pipeline.tasks.corr2cause import message, score, worked
from pipeline.tasks.rows import hub_rows, load_rows, read
from pipeline.tasks.source import check_source, is_file_source, read_csv

RELEASED = HOME.parent / "shared" / "data" / "corr2cause" / "train_head_2500.csv"
PREMISE = (
    "Suppose there is a closed system of 2 variables, A and B. All the statistical relations among these 2 variables "
    "are as follows: A correlates with B."
)
CLAIM = "A directly causes B."


def row_of(label: Any) -> dict[str, Any]:
    return {"premise": PREMISE, "hypothesis": CLAIM, "label": label}


def test_an_answer_counts_against_the_label() -> None:
    assert score("Therefore: No", row_of(0)).correct is True
    assert score("Therefore: Yes", row_of(0)).correct is False
    assert score("Therefore: Yes", row_of(1)).correct is True
    unparsable = score("I cannot say.", row_of(0))
    assert (unparsable.correct, unparsable.parsed) == (False, None)


@pytest.mark.parametrize("label", [2, -1, None, "1"])
def test_a_label_that_is_no_label_cannot_be_graded(label: Any) -> None:
    verdict = score("Therefore: No", row_of(label))
    assert (verdict.correct, verdict.parsed) == (None, "no")
    assert repr(label) in verdict.reason


def test_steps_are_judged_and_the_share_ends_at_the_first_false_one() -> None:
    good = worked(PREMISE, CLAIM, "full")
    assert score(good, row_of(0)).true_share == 1.0
    bad = score(good.replace("Edges: A - B", "Edges: A > B"), row_of(0))
    assert bad.correct is True
    first = next(i for i, step in enumerate(bad.steps) if not step.true)
    assert 0 < bad.true_share == first / len(bad.steps) < 1
    assert bad.steps[first].reason


@pytest.mark.parametrize("style", ["full", "short", "answer"])
def test_worked_completions_are_correct_and_true(style: Style) -> None:
    for row in sample("train", [2, 3, 4, 5], 60, 3, "label" if style == "full" else "natural"):
        verdict = score(worked(row.premise, row.hypothesis, style), vars(row))
        assert verdict.correct is True
        if style == "full":
            assert verdict.steps and all(step.true for step in verdict.steps)


def test_prompts_say_what_they_must() -> None:
    default = message(PREMISE, CLAIM, "default")
    assert default.startswith(
        "You are an expert in causal reasoning. Given a premise describing statistical relationships between "
        "variables, determine if the stated causal hypothesis is consistent with the given information.\n\n"
        f"Premise and Hypothesis:\nPremise: {PREMISE}\nHypothesis: {CLAIM}\n\nThink step by step"
    )
    assert message(PREMISE, CLAIM, "paper") == (
        f'Question: {PREMISE}\nCan we deduct the following: A directly causes B? Just answer "Yes" or "No."\n\nAnswer:'
    )


def test_what_is_a_file() -> None:
    assert all(map(is_file_source, ["rows.csv", "./rows", "/data/rows", "~/rows"]))
    assert not any(map(is_file_source, ["generated", "causal-nlp/corr2cause"]))


GOOD = f'"Premise: {PREMISE}\nHypothesis: {CLAIM}"'
BROKEN: list[tuple[bytes, list[str]]] = [
    (b"", ["an empty data file", "rows.csv"]),
    (b"input,label\n", ["a data file without rows", "rows.csv"]),
    (f"input,num_variables\n{GOOD},2\n".encode(), ["column label is missing", "num_variables"]),
    (b"a,b\n1,2\n", ["column input, label is missing"]),
    (f"input,label\n{GOOD},0\n{GOOD},2\n".encode(), ["label of row 1 is not 0 or 1", "'2'", "mend this row"]),
    (f"input,label\n{GOOD},\n".encode(), ["label of row 0", "''"]),
    (f"input,label\n{GOOD}\n".encode(), ["label of row 0", "not 0 or 1"]),
    (b'input,label\n"Pr\xe4mie",0\n', ["not UTF-8 text", "byte", "save it as UTF-8"]),
    (b"input,label\nA causes B,0\n", ["row 0 has no `Premise: ...` line", "'A causes B'", "released format"]),
    (b'input,label\n"Premise: A",0\n', ["row 0 has no", "Hypothesis"]),
]


@pytest.mark.parametrize(("content", "parts"), BROKEN)
def test_broken_files_are_refused(tmp_path: Path, content: bytes, parts: list[str]) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        check_source(str(path))
    for part in [*parts, str(path)]:
        assert part in str(caught.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "rows.csv", tmp_path):
        with pytest.raises(UserError, match="no such data file") as caught:
            check_source(str(path))
        assert str(path) in str(caught.value)


def test_bad_rows_are_told_together_but_not_without_end(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("input,label\n" + "x,0\n" * 3 + "x,7\n")
    with pytest.raises(UserErrors) as caught:
        check_source(str(path))
    assert len(caught.value.errors) == 4
    path.write_text("input,label\n" + "x,0\n" * 50)
    with pytest.raises(UserErrors) as caught:
        check_source(str(path))
    assert len(caught.value.errors) == 10


def test_a_good_file_is_read_in_order(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(f"label,input,more\n0,{GOOD},x\n1,{GOOD},y\n")
    check_source(str(path))
    assert [(row, label) for row, _, label in read_csv(path)] == [(0, 0), (1, 1)]


SMALL = Data(max_variables=4, rows={"sft": 300, "grpo": 200, "dev": 60, "test": 120})


def test_generated_rows_depend_on_the_seed_alone() -> None:
    first, again = (load_rows(SMALL, ["sft", "grpo"], 5).rows for _ in range(2))
    assert first == again
    assert {name: len(rows) for name, rows in first.items()} == SMALL.rows
    other = load_rows(SMALL, ["sft", "grpo"], 6).rows
    assert all(first[name] != other[name] for name in first)


def test_a_longer_list_of_stages_leaves_the_others_as_they_were() -> None:
    alone, both = (load_rows(SMALL, names, 5).rows for names in (["sft"], ["sft", "grpo"]))
    assert all(alone[name] == both[name] for name in alone)


def classes_in(rows: list[Row]) -> set[str]:
    return {row.mec for row in rows}


def assert_apart(rows: dict[str, list[Row]], training: list[str]) -> None:
    held_out = [
        classes_in(rows["test"]),
        classes_in(rows["dev"]),
        set().union(*(classes_in(rows[n]) for n in training)),
    ]
    for index, one in enumerate(held_out):
        assert one
        assert not any(one & other for other in held_out[index + 1 :])


def test_no_class_is_shared_and_only_training_is_balanced() -> None:
    rows = load_rows(SMALL, ["sft", "grpo"], 5).rows
    assert_apart(rows, ["sft", "grpo"])
    for name in ("sft", "grpo"):
        assert 0.4 < np.mean([row.label for row in rows[name]]) < 0.6
    for name in ("dev", "test"):
        assert np.mean([row.label for row in rows[name]]) < 0.4
        assert len({row.input for row in rows[name]}) == len(rows[name])
    natural = load_rows(SMALL.model_copy(update={"balance": None}), ["sft"], 5).rows["sft"]
    assert np.mean([row.label for row in natural]) < 0.4


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_training_rows_have_the_share_of_valid_rows_asked_for(share: float) -> None:
    rows = load_rows(SMALL.model_copy(update={"balance": share, "rows": {"sft": 1000}}), ["sft"], 5).rows
    assert abs(np.mean([row.label for row in rows["sft"]]) - share) < 0.06


def test_no_held_out_row_stands_twice() -> None:
    rows = load_rows(SMALL.model_copy(update={"rows": {"dev": 300, "test": 600, "sft": 1}}), ["sft"], 5).rows
    assert [len({row.input for row in rows[name]}) for name in ("dev", "test")] == [300, 600]


def write_rows(path: Path, rows: list[Row]) -> Data:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["input", "label"])
        writer.writerows([row.input, row.label] for row in rows)
    return Data(source=str(path), max_variables=5, balance=None)


@pytest.fixture(scope="module")
def mixed() -> list[Row]:
    """Rows of all three sets."""
    sizes = {"train": 150, "dev": 60, "test": 90}
    return [row for split, count in sizes.items() for row in sample(split, [4, 5], count, 1, "label")]  # type: ignore[arg-type]


def test_labels_are_kept_or_computed_as_the_recipe_says(tmp_path: Path, mixed: list[Row]) -> None:
    flipped = {row.input for row in mixed[::7]}
    data = write_rows(tmp_path / "r.csv", [replace(r, label=r.label ^ (r.input in flipped)) for r in mixed])
    true = {row.input: row.label for row in mixed}
    for labels in ("released", "corrected", "clean"):
        parts = load_rows(data.model_copy(update={"labels": labels}), ["sft"], 1)
        found = {row.input: row.label for rows in parts.rows.values() for row in rows}
        assert found.keys() == true.keys()
        differ = {text for text, label in found.items() if label != true[text]}
        assert differ == (flipped if labels == "released" else set())
        assert_apart(parts.rows, ["sft"])
        assert (parts.left_out, parts.notes) == ({}, [])


def test_rows_of_a_file_are_read_back_whole(tmp_path: Path, mixed: list[Row]) -> None:
    rows = load_rows(write_rows(tmp_path / "r.csv", mixed), ["sft"], 1).rows
    assert {row for part in rows.values() for row in part} == set(mixed)


def test_rows_outside_the_range_are_counted_and_training_is_balanced(tmp_path: Path, mixed: list[Row]) -> None:
    data = write_rows(tmp_path / "r.csv", mixed)
    parts = load_rows(data.model_copy(update={"max_variables": 4}), ["sft"], 1)
    five = sum(row.num_variables == 5 for row in mixed)
    assert parts.left_out["number of variables outside the recipe's range"] == five
    train = load_rows(data.model_copy(update={"balance": 0.5, "rows": {"sft": 20}}), ["sft"], 1).rows["sft"]
    assert [sum(row.label == label for row in train) for label in (0, 1)] == [10, 10]


def test_a_file_without_a_test_class_gets_generated_ones(tmp_path: Path) -> None:
    rows = sample("train", [4, 5], 50, 1, "label")
    data = write_rows(tmp_path / "r.csv", rows)
    parts = load_rows(data.model_copy(update={"rows": {"dev": 20, "test": 30}}), ["sft"], 1)
    assert {name: len(found) for name, found in parts.rows.items()} == {"dev": 20, "test": 30, "sft": 50}
    assert [note.rpartition(": ")[2] for note in parts.notes] == ["dev rows are generated", "test rows are generated"]
    assert_apart(parts.rows, ["sft"])


def test_rows_of_a_folder_or_hub_data_set_that_stand_in_a_held_out_one_are_left_out(
    tmp_path: Path, mixed: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "datasets--hub" / "snapshots" / "main"
    folder.mkdir(parents=True)
    for name, rows in (("test", mixed[:60]), ("validation", mixed[40:120]), ("train", mixed[100:])):
        write_rows(folder / f"{name}.csv", rows)
    assert [text for _, text, _ in hub_rows("hub", "validation", None)] == [row.input for row in mixed[40:120]]
    parts = load_rows(Data(source="hub", balance=None), ["sft"], 1)
    assert set(parts.rows["test"]) == set(mixed[:60])
    dev = [row for row in mixed[40:120] if row.mec not in classes_in(mixed[:60])]
    assert set(parts.rows["dev"]) == set(dev)
    assert set(parts.rows["sft"]) == {r for r in mixed[100:] if r.mec not in classes_in(mixed[:60] + dev)}
    assert_apart(parts.rows, ["sft"])
    used = sum(map(len, parts.rows.values()))
    assert parts.left_out == {
        "premise stands in a held-out set, under some renaming": 60 + 80 + len(mixed[100:]) - used
    }


def test_a_row_that_cannot_be_read_is_named(tmp_path: Path, mixed: list[Row]) -> None:
    data = write_rows(tmp_path / "r.csv", [mixed[0], replace(mixed[1], hypothesis="A likes B.")])
    with pytest.raises(UserError, match=r"row 1: .*A likes B.*r\.csv"):
        load_rows(data, ["sft"], 1)


def test_a_file_without_training_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no rows are left for sft.*data\.source"):
        load_rows(write_rows(tmp_path / "r.csv", sample("test", [4], 20, 1, "label")), ["sft"], 1)


@pytest.mark.skipif(not RELEASED.is_file(), reason="the released rows are not in ../shared/data/corr2cause")
def test_the_released_rows_are_read_whole_and_39_labels_are_corrected() -> None:
    check_source(str(RELEASED))
    rows = [(label, read(text, label)) for _, text, label in read_csv(RELEASED)]
    assert len(rows) == 2500
    assert all(row.mec for _, row in rows)
    assert sum(label != row.label for label, row in rows) == 39
    parts = load_rows(Data(source=str(RELEASED), max_variables=6, balance=None), ["sft"], 1)
    assert parts.left_out == {"dev rows of a source that has no valid one": 72}
    assert_apart(parts.rows, ["sft"])
    assert {row.input for row in parts.rows["sft"]} < {row.input for _, row in rows}


def test_more_held_out_rows_than_there_are_is_refused() -> None:
    with pytest.raises(UserError, match=r"data\.rows\.test asks for 3000 different rows; the test classes have: 960"):
        load_rows(SMALL.model_copy(update={"rows": {"test": 3000}}), ["sft"], 1)


def test_a_folder_of_published_files_keeps_its_own_test(tmp_path: Path) -> None:
    write_files(tmp_path, Choice(most=4))
    data = Data(source=str(tmp_path), labels="released", balance=None, rows={"test": None, "dev": None, "sft": None})
    parts = load_rows(data, ["sft"], 0)
    made = {name: {row.input for row in rows} for name, rows in parts.rows.items()}
    with (tmp_path / "test.csv").open(encoding="utf-8", newline="") as file:
        assert made["test"] == {row["input"] for row in csv.DictReader(file)}
    classes = {name: {row.mec for row in rows} for name, rows in parts.rows.items()}
    assert not classes["sft"] & (classes["test"] | classes["dev"])
    assert not classes["dev"] & classes["test"]
    assert parts.left_out


def test_a_folder_without_a_set_is_refused_before_the_queue(tmp_path: Path) -> None:
    write_files(tmp_path, Choice(most=4))
    check_source(str(tmp_path))
    (tmp_path / "dev.csv").unlink()
    with pytest.raises(UserError, match="dev"):
        check_source(str(tmp_path))


def test_rows_of_a_source_get_random_letters_only_for_training(tmp_path: Path) -> None:
    write_files(tmp_path, Choice(most=5))
    rows: dict[str, int | None] = {"test": 50, "dev": 50, "sft": 400}
    plain, other = (
        load_rows(Data(source=str(tmp_path), relabel=relabel, rows=rows), ["sft"], 0) for relabel in (False, True)
    )
    assert plain.rows["test"] == other.rows["test"]
    for a, b in zip(plain.rows["sft"], other.rows["sft"], strict=True):
        assert (a.mec, a.label) == (b.mec, b.label)
        assert read(b.input, 0).label == b.label and read(b.input, 0).mec == b.mec
    late = [[row.label for row in each.rows["sft"] if row.template == "child"] for each in (plain, other)]
    assert sum(late[0]) == 0 < sum(late[1])


@pytest.mark.parametrize("n", [6, 8])
def test_generated_rows_of_more_variables(n: int) -> None:
    data = Data(
        min_variables=n,
        max_variables=n,
        paraphrase=True,
        rows={"test": 40, "dev": 20, "sft": 60},
        graphs=Graphs(premises=40),
    )
    parts = load_rows(data, ["sft"], 0)
    assert {name: len(rows) for name, rows in parts.rows.items()} == {"test": 40, "dev": 20, "sft": 60}
    for rows in parts.rows.values():
        assert {row.num_variables for row in rows} == {n}
        assert all(read(row.input, 0).label == row.label and read(row.input, 0).mec == row.mec for row in rows)
    assert not {row.mec for row in parts.rows["sft"]} & {row.mec for row in parts.rows["test"]}


def test_generated_rows_have_no_released_labels() -> None:
    with pytest.raises(ValueError, match="generated rows have corrected ones"):
        Data(labels="released")


def test_answers_about_a_premise_that_no_dag_satisfies_are_graded_and_no_step_of_theirs_is() -> None:
    premise = PREMISE.replace("2 variables", "3 variables").replace("A and B", "A, B and C") + (
        " A correlates with C. B correlates with C. However, A and B are independent given C. "
        "A and C are independent given B."
    )
    with pytest.raises(UserError, match="no DAG"):
        worked(premise, CLAIM, "full")
    verdict = score("Skeleton: A - B; Therefore: No", {"premise": premise, "hypothesis": CLAIM, "label": 0})
    assert (verdict.correct, verdict.steps, verdict.true_share) == (True, (), 0.0)
