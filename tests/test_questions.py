"""Published questions: where rows come from, which are held out, what is told of broken ones, what recipes say."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UserError
from pipeline.load import build_recipe, dump_recipe, load_recipe, recipe_file
from pipeline.question_recipe import reward_of
from pipeline.recipe import Recipe
from pipeline.run import HOME, RunDir
from pipeline.stages.asking import question_completions
from pipeline.tasks.published import Origin, check_files, origin, rows_of
from pipeline.tasks.questions import load_questions
from pipeline.training.hub import hub_items, pinned, write_prefetched

REAL = HOME.parent / "shared/data"


def recipe(task: str, **data: Any) -> Recipe:
    tree = {
        "task": task,
        "stages": ["preprocess", "sft", "grpo", "evaluate"],
        "model": {"base": "x"},
        "data": data,
        "sft": {"global_batch_size": 8},
        "grpo": {"global_batch_size": 8},
    }
    return build_recipe("r", tree, "r.yaml")


def sums(count: int, start: int = 0) -> list[dict[str, str]]:
    """Rows in GSM8K's format."""
    numbers = range(start, start + count)
    return [{"question": f"What is {n} and 1?", "answer": f"It is <<{n}+1={n + 1}>>.\n#### {n + 1}"} for n in numbers]


def write(path: Path, rows: list[Any]) -> str:
    """The path of a file of JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_a_folder_gives_its_splits(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", sums(50))
    write(tmp_path / "test.jsonl", sums(20, start=40))
    found = load_questions(recipe("gsm8k", source=str(tmp_path), rows={"dev": 6, "grpo": 12}))
    assert {name: len(rows) for name, rows in found.rows.items()} == {"test": 20, "dev": 6, "sft": 34, "grpo": 12}
    assert found.left_out == {
        "dev: the question stands in a held-out set": 10,
        "sft: the question stands in a held-out set": 16,
        "grpo: the question stands in a held-out set": 16,
    }
    test = {row.row["question"] for name in ("test", "dev") for row in found.rows[name]}
    assert not test & {row.row["question"] for name in ("sft", "grpo") for row in found.rows[name]}


def test_one_file_is_divided_the_same_way_each_time(tmp_path: Path) -> None:
    source = write(tmp_path / "all.jsonl", sums(100))
    one, two = (load_questions(recipe("gsm8k", source=source)) for _ in range(2))
    assert one.rows == two.rows
    assert {name: len(rows) for name, rows in one.rows.items()} == {"test": 10, "dev": 9, "sft": 81, "grpo": 81}
    assert [row.number for row in one.rows["sft"]] != [row.number for row in one.rows["grpo"]]


def test_max_samples_bounds_training_rows_that_are_not_counted_by_name(tmp_path: Path) -> None:
    source = write(tmp_path / "all.jsonl", sums(100))
    found = load_questions(recipe("gsm8k", source=source, max_samples=5, rows={"grpo": 7}))
    assert (len(found.rows["sft"]), len(found.rows["grpo"]), len(found.rows["test"])) == (5, 7, 10)


def test_parts_have_their_own_task_source_split_and_template(tmp_path: Path) -> None:
    meta = [{"query": f"q{n}", "response": f"so\nThe answer is: {n}"} for n in range(9)]
    write(tmp_path / "train.jsonl", sums(30))
    write(tmp_path / "extra.jsonl", sums(9, start=100))
    parts = {
        "sft": {"task": "metamathqa", "source": write(tmp_path / "meta.jsonl", meta), "template": "math_hash"},
        "test": {"split": "extra"},
    }
    found = load_questions(recipe("gsm8k", source=str(tmp_path), parts=parts))
    assert {row.task for row in found.rows["sft"]} == {"metamathqa"} and len(found.rows["sft"]) == 9
    assert {row.task for row in found.rows["dev"]} == {"gsm8k"}
    assert found.rows["sft"][0].completion == f"so\n#### {found.rows['sft'][0].row['response'].split()[-1]}"
    assert all(row.row["question"].startswith("What is 10") for row in found.rows["test"])


@pytest.mark.parametrize("form", ["jsonl", "json", "jsonl.gz", "parquet"])
def test_files_of_every_form_hold_the_same_rows(form: str, tmp_path: Path) -> None:
    rows, path = sums(4), tmp_path / f"train.{form}"
    lines = "\ufeff" + "".join(json.dumps(row) + "\n\n" for row in rows)
    if form == "jsonl":
        path.write_text(lines, encoding="utf-8")
    elif form == "json":
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    elif form == "jsonl.gz":
        path.write_bytes(gzip.compress(lines.encode()))
    else:
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    assert rows_of(Origin("gsm8k", str(path), None)) == list(enumerate(rows))
    assert rows_of(Origin("gsm8k", str(tmp_path), "train")) == list(enumerate(rows))


def test_broken_rows_are_named_with_their_fields_ten_at_once(tmp_path: Path) -> None:
    rows: list[Any] = [*sums(2), {"question": "q"}, {"question": 1, "answer": "a"}, *({} for _ in range(20))]
    source = write(tmp_path / "train.jsonl", rows)
    with pytest.raises(UserError) as caught:
        check_files(recipe("gsm8k", source=source), ["sft"])
    lines = str(caught.value).splitlines()
    assert len(lines) == 10
    assert lines[0].startswith(f"row 2 of {source}: field `answer` is missing: ['question']")
    assert lines[1].startswith(f"row 3 of {source}: field `question` is not a str: '1'")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "a data file without rows"),
        ('{"question": "q", "answer": "#### 1"}\n{"question', "line 2 -> mend it"),
        ("[1]", "a row is a JSON object"),
        ("[" * 9, "not JSON"),
    ],
)
def test_broken_files_are_told(text: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=told):
        rows_of(Origin("gsm8k", str(path), None))


def test_what_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file of the split test"):
        check_files(recipe("gsm8k", source=str(tmp_path)), ["sft"])
    with pytest.raises(UserError, match="no such data file"):
        check_files(recipe("gsm8k", source=str(tmp_path / "no.jsonl")), [])
    with pytest.raises(UserError, match="humaneval has no split train: it has: 'test'"):
        origin(recipe("humaneval"), "grpo")
    write(tmp_path / "only.jsonl", sums(1))
    with pytest.raises(UserError, match="no rows are left for dev"):
        load_questions(recipe("gsm8k", source=str(tmp_path / "only.jsonl")))


def test_rows_without_a_solution_are_not_learned_from(tmp_path: Path) -> None:
    rows = [{"problem": f"p{n}", "solution": "", "answer": "1"} for n in range(30)]
    found = load_questions(recipe("math", source=write(tmp_path / "all.jsonl", rows), template="plain"))
    made = question_completions(found, ["sft"])
    assert set(made["sft"]) == {"1"}  # the answer alone
    code = [{"instruction": f"i{n}", "output": "x" if n % 2 else ""} for n in range(30)]
    parts = {"sft": {"task": "codealpaca", "source": write(tmp_path / "code.jsonl", code)}}
    found = load_questions(recipe("math", source=str(tmp_path / "all.jsonl"), parts=parts))
    made = question_completions(found, ["sft"])
    assert made["sft"] == ["x"] * 15 and found.left_out["sft: the row has no solution to learn from"] == 15


def test_real_files_load_in_their_published_formats() -> None:
    if not REAL.is_dir():
        pytest.skip(f"REAL DATA ABSENT: {REAL}")
    found = {
        task: len(rows_of(Origin(task, str(REAL / name), split)))
        for task, name, split in (
            ("gsm8k", "gsm8k", "train"),
            ("gsm8k", "gsm8k", "test"),
            ("math", "math/train_2000.jsonl", None),
            ("math", "math/math500_test.json", None),
            ("humaneval", "humaneval/HumanEval.jsonl.gz", None),
            ("mbpp", "mbpp/sanitized-mbpp.json", None),
            ("codealpaca", "codealpaca/code_alpaca_2k.json", None),
        )
    }
    assert found == {"gsm8k": 1319, "math": 500, "humaneval": 164, "mbpp": 427, "codealpaca": 2017}
    splits = {s: len(rows_of(Origin("mbpp", str(REAL / "mbpp/sanitized-mbpp.json"), s))) for s in ("train", "test")}
    assert splits == {"train": 120, "test": 257}


def test_hub_sets_are_read_from_the_cache_at_the_commit_that_prefetch_brought(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    made = recipe("gsm8k", source="me/sums:default", parts={"sft": {"task": "metamathqa"}})
    items = {item.key: item.name for item in hub_items(made)}
    assert items == {"model.base": "x", "data.source": "me/sums", "data.parts.sft": "meta-math/MetaMathQA"}
    run = RunDir(tmp_path, "r")
    for item in hub_items(made):
        write_prefetched(run, item, "c0ffee", {}, "now")
    made = pinned(made, run)
    assert made.data.revision == made.data.parts["sft"].revision == made.model.revision == "c0ffee"
    folder = tmp_path / "hub/datasets--me--sums/snapshots/c0ffee"
    folder.mkdir(parents=True)
    write(folder / "train.jsonl", sums(5))
    write(folder / "test.jsonl", sums(3, start=9))
    assert rows_of(origin(made, "test")) == list(enumerate(sums(3, start=9)))
    assert rows_of(origin(made, "grpo")) == list(enumerate(sums(5)))
    with pytest.raises(UserError, match="prefetch"):
        rows_of(origin(made, "sft"))


@pytest.mark.parametrize("name", ["gsm8k", "math", "code", "tiny-math"])
def test_the_recipes_hold_the_documented_values(name: str) -> None:
    made = load_recipe(recipe_file(HOME, name))
    assert build_recipe(name, dump_recipe(made), "again") == made
    if name == "tiny-math":
        assert made.data.source == "generated"
        return
    assert made.model.base == "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"
    sft, grpo = made.trainer_options("sft"), made.trainer_options("grpo")
    assert (sft["learning_rate"], grpo["learning_rate"], made.own("grpo").num_generations) == (2e-5, 1e-6, 8)
    assert 0.7 <= grpo["temperature"] <= 0.8


def tree_of(task: str, **grpo: Any) -> dict[str, Any]:
    return {
        "task": task,
        "stages": ["preprocess", "grpo"],
        "model": {"base": "x"},
        "grpo": {"global_batch_size": 8, **grpo},
    }


@pytest.mark.parametrize(
    ("tree", "told"),
    [
        (tree_of("gsm8k", rewards={}), "grpo.rewards is not for the task: 'gsm8k' in grpo -> use reward"),
        (tree_of("corr2cause", reward={"type": "weighted"}), "reward.type weighted and reward.parts"),
        (tree_of("gsm8k", reward={"type": "code_execution"}), "cannot grade rows of gsm8k: 'code_execution'"),
        (tree_of("codealpaca"), "no answer can be graded in rows of: 'codealpaca'"),
        (tree_of("gsm8k") | {"data": {"balance": 0.1}}, "data.balance is not for the task: 'gsm8k'"),
        ({**tree_of("corr2cause"), "data": {"template": "plain"}}, "data.template is not for the task: 'corr2cause'"),
        (tree_of("gsm8k") | {"data": {"parts": {"sft": {}}}}, "data.parts for an unknown stage: 'sft'"),
        (tree_of("gsm8k") | {"data": {"template": "cot"}}, "data.template: Input should be 'plain'"),
        (tree_of("gsm9k"), "task"),
        (tree_of("gsm8k", reward={"type": "math_correctness", "positive": 0}), "positive 0.0 is not above"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_told(tree: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError) as caught:
        build_recipe("r", tree, "r.yaml")
    assert told in str(caught.value)


def test_the_reward_is_that_of_the_stage_s_task() -> None:
    assert reward_of(recipe("math"), "grpo").type == "math_correctness"
    parts = {"grpo": {"task": "mbpp"}, "test": {"task": "humaneval"}}
    assert reward_of(recipe("codealpaca", parts=parts), "grpo").type == "code_execution"
