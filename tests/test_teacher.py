"""A teacher's prediction file: read strictly, matched to training rows, judged by the scorer."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.causal.generate import Row, sample
from pipeline.errors import UserError, UserErrors
from pipeline.load import build_recipe
from pipeline.recipe_data import Data
from pipeline.stages.completions import add_completions
from pipeline.tasks.corr2cause import message, score, worked
from pipeline.tasks.rows import load_rows
from pipeline.tasks.teacher import Taught, read_teacher, taught

ROWS = sample("train", [3, 4, 5], 12, 1, "label")
HEADER = {"header": {"model": "gpt", "rows": 12}}


def right(row: Row) -> str:
    return worked(row.premise, row.hypothesis, "full")


def wrong(row: Row) -> str:
    return f"Therefore: {'No' if row.label else 'Yes'}"


def prediction(row: Row, completion: str, **more: Any) -> dict[str, Any]:
    return {"premise": row.premise, "hypothesis": row.hypothesis, "label": row.label, "completion": completion, **more}


def write(path: Path, values: list[Any], lines: bool = True) -> Data:
    """A recipe's data section whose teacher is the file written."""
    if lines:
        path.write_text("".join(json.dumps(value) + "\n" for value in [HEADER, *values]))
    else:
        path.write_text(json.dumps({**HEADER, "predictions": values}, indent=1))
    return Data(completions="teacher", teacher=str(path))


def used(found: Taught) -> list[tuple[Row, str]]:
    return list(zip(found.rows, found.completions, strict=True))


@pytest.mark.parametrize("lines", [True, False])
def test_only_right_answers_are_used_and_all_are_counted(tmp_path: Path, lines: bool) -> None:
    held_out = sample("test", [4], 1, 1)[0]
    six = "Suppose there is a closed system of 2 variables, A and B."
    values = [
        prediction(ROWS[0], right(ROWS[0]), correct=True),
        prediction(ROWS[1], wrong(ROWS[1]), correct=True),
        prediction(ROWS[2], "I cannot say.", correct=False),
        prediction(held_out, right(held_out)),
        {"premise": six, "hypothesis": "A likes B.", "label": 0, "completion": "No."},
        prediction(ROWS[3], right(ROWS[3]), correct=False),
        prediction(ROWS[0], right(ROWS[0])),
        prediction(ROWS[0], f"Let me think. {right(ROWS[0])}"),
    ]
    found = taught(write(tmp_path / "gpt_predictions_x.json", values, lines), set())
    assert used(found) == [(ROWS[0], right(ROWS[0])), (ROWS[3], right(ROWS[3])),
                           (ROWS[0], f"Let me think. {right(ROWS[0])}")]  # fmt: skip
    assert found.counts == {
        "predictions": 8, "used": 3, "wrong": 1, "unparsable": 1, "held_out": 1, "unmatched": 1, "repeated": 1,
        "differs_from_file": 2,
    }  # fmt: skip
    assert all(score(text, vars(row)).correct for row, text in used(found))


def test_classes_of_the_held_out_rows_are_left_out(tmp_path: Path) -> None:
    values = [prediction(row, right(row)) for row in ROWS]
    found = taught(write(tmp_path / "p.jsonl", values), {ROWS[0].mec})
    assert found.rows == [row for row in ROWS if row.mec != ROWS[0].mec] != ROWS
    assert found.counts["held_out"] == sum(row.mec == ROWS[0].mec for row in ROWS)


def test_rows_outside_the_range_of_variables_match_nothing(tmp_path: Path) -> None:
    data = write(tmp_path / "p.jsonl", [prediction(row, right(row)) for row in ROWS])
    found = taught(data.model_copy(update={"max_variables": 4}), set())
    assert found.rows == [row for row in ROWS if row.num_variables <= 4] != ROWS
    assert found.counts["unmatched"] == sum(row.num_variables == 5 for row in ROWS) > 0


@pytest.mark.parametrize("prompt", ["default", "paper"])
def test_a_row_is_found_in_the_prompt(tmp_path: Path, prompt: str) -> None:
    example = message(ROWS[5].premise, ROWS[5].hypothesis, prompt)
    values = [
        {"prompt": f"<|user|>{example}Yes\n\n{message(row.premise, row.hypothesis, prompt)}<|end|>", "id": f"x/{index}",
         "completion": right(row)}
        for index, row in enumerate(ROWS)
    ]  # fmt: skip
    assert used(taught(write(tmp_path / "p.jsonl", values), set())) == [(row, right(row)) for row in ROWS]


def test_other_names_of_premise_and_row(tmp_path: Path) -> None:
    first, second = ROWS[:2]
    values = [
        {"id": "5:62/0", "row": 0, "premise_id": first.premise, "hypothesis": first.hypothesis,
         "completion": right(first)},
        {"input": second.input, "completion": right(second)},
        {"premise": f"Premise: {first.premise}", "hypothesis": f"Hypothesis: {first.hypothesis}", "completion": "x"},
    ]  # fmt: skip
    found = taught(write(tmp_path / "p.jsonl", values), set())
    assert (found.rows, found.counts["unparsable"]) == ([first, second], 1)


def write_source(path: Path) -> str:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["input", "label"], *([row.input, row.label] for row in ROWS)])
    return str(path)


def test_a_number_is_a_row_of_the_data_file(tmp_path: Path) -> None:
    values: list[dict[str, Any]] = [
        {"row": 3, "completion": right(ROWS[3]), "label": ROWS[3].label},
        {"id": "7", "completion": right(ROWS[7])},
        {"id": 99, "completion": "Yes"},
    ]
    data = write(tmp_path / "p.jsonl", values)
    source = data.model_copy(update={"source": write_source(tmp_path / "rows.csv")})
    found = taught(source, set())
    assert (found.rows, found.counts["unmatched"]) == ([ROWS[3], ROWS[7]], 1)
    with pytest.raises(UserError, match=r"line 2 names its row by number alone.*'generated' in .*p\.jsonl -> give"):
        taught(data, set())
    values[0]["label"] = 1 - ROWS[3].label
    write(tmp_path / "p.jsonl", values)
    with pytest.raises(UserError, match=r"line 2: row 3 of .*rows\.csv has label ., not: . in .*p\.jsonl -> give"):
        taught(source, set())


def test_labels_are_those_that_the_recipe_names(tmp_path: Path) -> None:
    row = ROWS[0]
    data = write(tmp_path / "p.jsonl", [prediction(row, wrong(row)) | {"label": 1 - row.label}])
    with pytest.raises(
        UserError, match=r"no prediction of the teacher can be used: {'wrong': 1} in .*p\.jsonl -> give"
    ):
        taught(data, set())
    released = data.model_copy(update={"labels": "released"})
    assert [each.label for each in taught(released, set()).rows] == [1 - row.label]
    write(tmp_path / "p.jsonl", [{k: v for k, v in prediction(row, right(row)).items() if k != "label"}])
    with pytest.raises(
        UserError, match=r"line 2: no label, and data\.labels is: 'released'.*-> use data\.labels: corr"
    ):
        taught(released, set())


GOOD = json.dumps(prediction(ROWS[0], "Yes"))
HEAD = json.dumps(HEADER)
BROKEN: list[tuple[str, list[str]]] = [
    ("", ["line 1 is not JSON", "begin with a header"]),
    (f"{HEAD}\n", ["a prediction file without predictions", "begin with a header"]),
    (f"{HEAD}\n{GOOD}\n{GOOD[:40]}", ["line 3 is not JSON (a torn file?)", GOOD[20:30], "mend or delete this line"]),
    (f"{GOOD}\n{GOOD}\n", ["begins with its header, not with", "premise", "begin with a header"]),
    (f"{HEAD}\n[1]\n", ["line 2: a prediction is an object", "[1]", "mend or delete this prediction"]),
    (f"{HEAD}\n{GOOD}\n{{\"row\": 1}}\n", ["line 3: no text under `completion`", "['row']", "mend or delete"]),
    (f'{HEAD}\n{{"completion": "Yes"}}\n', ["line 2: nothing names its row", "['completion']", "mend"]),
    (f'{HEAD}\n{{"row": 0, "label": 2, "completion": ""}}\n', ["line 2: the label is not 0 or 1: 2", "mend"]),
    (f'{HEAD}\n{{"row": 0, "correct": "no", "completion": ""}}\n', ["line 2: `correct` is not true, false", "'no'"]),
    ('{"header": {},\n "predictions": [\n{"row": 1,]}', ["line 3 is not JSON", "row", "a torn file?"]),
    ('{"header": {}, "predictions": {}}', ["not a prediction file", "begin with a header"]),
    ('{"predictions": []}', ["not a prediction file", "begin with a header"]),
    ('{"header": {}, "predictions": []}', ["a prediction file without predictions"]),
    ('{"header": {}, "predictions": [{"row": 1}]}', ["predictions[0]: no text under `completion`"]),
]  # fmt: skip


@pytest.mark.parametrize(("content", "parts"), BROKEN)
def test_broken_files_are_refused(tmp_path: Path, content: str, parts: list[str]) -> None:
    path = tmp_path / "p.json"
    path.write_text(content)
    with pytest.raises(UserError) as caught:
        read_teacher(path)
    for part in [*parts, str(path), "->"]:
        assert part in str(caught.value)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(UserError, match=r"no such prediction file: .* in data\.teacher -> check the path"):
            read_teacher(path)
    (tmp_path / "p.json").write_bytes(b'{"header": "\xe4"}')
    with pytest.raises(UserError, match=r"not UTF-8 text: 'byte 12' in .*p\.json -> save it as UTF-8"):
        read_teacher(tmp_path / "p.json")


def test_bad_predictions_are_told_together_but_not_without_end(tmp_path: Path) -> None:
    for count, told in ((3, 3), (50, 10)):
        data = write(tmp_path / "p.jsonl", [{"row": 1}] * count)
        with pytest.raises(UserErrors) as caught:
            read_teacher(Path(str(data.teacher)))
        assert len(caught.value.errors) == told


def test_separators_within_a_completion_end_no_line(tmp_path: Path) -> None:
    row = ROWS[0]
    text = f"a\u2028b\x85c. {right(row)}"
    (tmp_path / "p.jsonl").write_text(
        f"{HEAD}\n{json.dumps(prediction(row, text), ensure_ascii=False)}\n", encoding="utf-8"
    )
    data = Data(completions="teacher", teacher=str(tmp_path / "p.jsonl"))
    assert used(taught(data, set())) == [(row, text)]


@pytest.mark.parametrize("data", [{"completions": "teacher"}, {"teacher": "p.json"}])
def test_the_file_and_the_kind_of_completions_go_together(data: dict[str, Any]) -> None:
    tree = {"stages": ["preprocess"], "model": {"scratch": {}}, "data": data}
    with pytest.raises(UserError, match=r"data\.completions: teacher and data\.teacher .* go together"):
        build_recipe("x", tree, "x.yaml")


def test_a_stage_gets_as_many_rows_as_the_recipe_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write(tmp_path / "p.jsonl", [prediction(row, right(row)) for row in ROWS] + [prediction(ROWS[0], "Hm.")])
    tree = {
        "stages": ["preprocess", "sft", {"name": "sft2", "kind": "sft"}, "grpo"],
        "model": {"scratch": {}},
        "sft": {"global_batch_size": 2},
        "sft2": {"global_batch_size": 2},
        "grpo": {"global_batch_size": 8},
        "data": {**data.model_dump(), "rows": {"sft": 5, "grpo": 6, "dev": 3, "test": 4}},
    }
    recipe = build_recipe("x", tree, "x.yaml")
    parts = load_rows(recipe.data, ["grpo"], 1)
    completions, figures = add_completions(recipe, parts)
    assert parts.rows["sft"] == ROWS[:5] and parts.rows["sft2"] == ROWS
    assert completions == {"sft": [right(row) for row in ROWS[:5]], "sft2": [right(row) for row in ROWS]}
    assert len(parts.rows["grpo"]) == 6
    assert figures["teacher"] == {
        "predictions": 13, "used": 12, "wrong": 0, "unparsable": 1, "unmatched": 0, "held_out": 0, "repeated": 0,
        "differs_from_file": 0,
    }  # fmt: skip
    assert parts.left_out == {"teacher: unparsable": 1}
    assert capsys.readouterr().out.startswith("teacher: 13 predictions, 12 used, 0 wrong, 1 unparsable, 0 unmatched")
