"""The preprocess stage: what it writes, what it keys it by, and when it uses it again."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from trl import SFTConfig

from pipeline import dag
from pipeline.causal.generate import sample
from pipeline.errors import UserError
from pipeline.load import build_recipe
from pipeline.recipe import ScratchModel
from pipeline.records import Done, first_difference, manifest
from pipeline.run import RunDir
from pipeline.settings import Tree, merge
from pipeline.stages import completions, preprocess
from pipeline.stages.rows import read_rows
from pipeline.tasks.corr2cause import message, score, worked
from pipeline.tasks.rows import load_rows
from pipeline.trainer_options import option_default
from pipeline.training.encode import IGNORED
from pipeline.training.models import end_of_turn, load_tokenizer, render_prompt
from pipeline.training.scratch import CHAT_TEMPLATE, train_tokenizer

ROWS = sample("train", [3, 4], 40, 1)
RIGHT = [worked(row.premise, row.hypothesis, "full") for row in ROWS]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A model folder as far as preprocess reads it: a tokenizer."""
    texts = [message(row.premise, row.hypothesis, "default") for row in ROWS]
    train_tokenizer(ScratchModel(), [*texts, *RIGHT]).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def tree(base: Path, **changes: Any) -> Tree:
    made: Tree = {
        "stages": ["preprocess", "sft", "grpo"],
        "model": {"base": str(base)},
        "data": {"max_variables": 4, "rows": {"sft": 50, "grpo": 20, "dev": 10, "test": 15}},
        "sft": {"global_batch_size": 8, "learning_rate": 1e-3},
        "grpo": {"global_batch_size": 8},
    }
    return merge(made, changes)


def preprocessed(root: Path, name: str, recipe: Tree) -> tuple[Path, bool]:
    """The processed data set of a run, and whether it was there already."""
    run = RunDir(root, name)
    run.write_resolved(build_recipe("x", recipe, "x.yaml"), {})
    preprocess.main(run.logs, "preprocess")
    return dag.dataset_of(run.read_resolved()[0], run), run.read_metrics("preprocess")[-1]["reused"]


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_rows_tokens_and_references_are_written(tmp_path: Path, base: Path) -> None:
    from datasets import Dataset

    folder, _ = preprocessed(tmp_path, "r", tree(base))
    tokenizer = load_tokenizer(base)
    end = end_of_turn(tokenizer)
    rows = Dataset.from_file(str(folder / "sft.arrow"))
    assert rows.column_names == ["input_ids", "labels"] and len(rows) == 50
    for row in rows:
        learned = [token for token in row["labels"] if token != IGNORED]
        assert row["input_ids"][-len(learned) :] == learned and learned[-1] == end
        prompt, said = tokenizer.decode(row["input_ids"][: -len(learned)]), tokenizer.decode(learned[:-1])
        premise, _, hypothesis = prompt.partition("Premise: ")[2].partition("\nHypothesis: ")
        reference = {"premise": premise, "hypothesis": hypothesis.partition("\n")[0], "label": int("Yes" in said)}
        verdict = score(said, reference)
        assert verdict.correct and verdict.true_share == 1
    for name, count in (("grpo", 20), ("dev", 10), ("test", 15)):
        made = read_rows(folder / f"{name}.jsonl")
        assert [row["row"] for row in made] == list(range(count))
        assert all(row["prompt"] == render_prompt(tokenizer, row["message"]) for row in made)
        assert all(row["message"] == message(row["premise"], row["hypothesis"], "default") for row in made)
    examples = read_rows(folder / "sft.examples.jsonl")
    first = [tokenizer(examples[0][key], add_special_tokens=False)["input_ids"] for key in ("prompt", "completion")]
    assert rows[0]["input_ids"] == [*first[0], *first[1], end]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sft": {"learning_rate": 5e-3, "num_train_epochs": 7}},
        {"model": {"lora": {"r": 4}, "precision": "fp32"}, "grpo": {"beta": 0.5}},
    ],
)
def test_what_changes_no_row_finds_the_data_set(tmp_path: Path, base: Path, changes: Tree) -> None:
    folder, reused = preprocessed(tmp_path, "first", tree(base))
    before = times(folder)
    again, reused_again = preprocessed(tmp_path, "second", tree(base, **changes))
    assert (reused, reused_again) == (False, True)
    assert again == folder and times(folder) == before


@pytest.mark.parametrize(
    "changes",
    [
        {"data": {"prompt": "paper"}},
        {"data": {"completions": "short"}},
        {"data": {"balance": 0.4}},
        {"data": {"rows": {"test": 16}}},
        {"seed": 7},
    ],
)
def test_what_changes_a_row_misses_it(tmp_path: Path, base: Path, changes: Tree) -> None:
    folder, _ = preprocessed(tmp_path, "first", tree(base))
    other, reused = preprocessed(tmp_path, "second", tree(base, **changes))
    assert other != folder and not reused
    assert folder.is_dir()


def test_changed_files_miss_it(tmp_path: Path, base: Path) -> None:
    """The template of a model folder, the teacher's predictions."""
    teacher = tmp_path / "p.jsonl"
    lines = [json.dumps({"header": {}})]
    lines += [json.dumps({"input": row.input, "completion": text}) for row, text in zip(ROWS, RIGHT, strict=True)]
    teacher.write_text("\n".join(lines))
    recipe = tree(base, data={"completions": "teacher", "teacher": str(teacher)})
    folders = [preprocessed(tmp_path, "first", recipe)[0]]
    teacher.write_text("\n".join(lines[:-1]))
    folders += [preprocessed(tmp_path, "second", recipe)[0]]
    (base / "chat_template.jinja").write_text(CHAT_TEMPLATE.replace("<|end|>", "<|end|>\n"))
    folders += [preprocessed(tmp_path, "third", recipe)[0]]
    assert len(set(folders)) == 3
    assert preprocessed(tmp_path, "fourth", recipe) == (folders[2], True)


def test_a_teachers_counts_are_in_the_metrics(tmp_path: Path, base: Path) -> None:
    teacher = tmp_path / "p.jsonl"
    made = [{"input": row.input, "completion": text} for row, text in zip(ROWS, RIGHT, strict=True)]
    made += [{"input": ROWS[0].input, "completion": "Hm."}, {"prompt": "What is 2 + 2?", "completion": "Yes"}]
    teacher.write_text("\n".join(map(json.dumps, [{"header": {}}, *made])))
    recipe = tree(base, data={"completions": "teacher", "teacher": str(teacher), "rows": {"sft": None}})
    folder, _ = preprocessed(tmp_path, "r", recipe)
    preprocessed(tmp_path, "again", recipe)
    for name in ("r", "again"):
        line = RunDir(tmp_path, name).read_metrics("preprocess")[-1]
        assert line["rows"] == 40 + 20 + 10 + 15
        counts = {"predictions": 42, "used": 40, "unparsable": 1, "unmatched": 1}
        assert {key: count for key, count in line["teacher"].items() if count} == counts
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["left_out"] == {"teacher: unparsable": 1, "teacher: unmatched": 1}


def test_a_damaged_data_set_is_made_anew(tmp_path: Path, base: Path) -> None:
    folder, _ = preprocessed(tmp_path, "first", tree(base))
    done = Done("", "", manifest(tmp_path, [folder]))
    stat = (folder / "sft.arrow").stat()
    content = (folder / "sft.arrow").read_bytes()
    (folder / "sft.arrow").write_bytes(content[:-100] + bytes(100))
    os.utime(folder / "sft.arrow", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    draft = RunDir(tmp_path, "second").dataset_draft(folder.name)
    draft.mkdir()
    (draft / "torn.arrow").touch()
    assert preprocessed(tmp_path, "second", tree(base)) == (folder, False)
    assert (folder / "sft.arrow").read_bytes() == content
    assert first_difference(tmp_path, done.outputs, thorough=True) is None, "the first run's marker still holds"
    assert not draft.exists() and "torn.arrow" not in times(folder)


def test_rows_too_long_are_refused_also_when_they_are_there_already(tmp_path: Path, base: Path) -> None:
    preprocessed(tmp_path, "first", tree(base))
    for name, limit in (("second", 20), ("third", 21)):
        with pytest.raises(
            UserError, match=rf"\d+ of 50 rows are longer than the limit of {limit} .* in sft\.max_length"
        ):
            preprocessed(tmp_path, name, tree(base, sft={"max_length": limit}))
    preprocessed(tmp_path, "fourth", tree(base, sft={"max_length": None}))


def test_the_trainers_own_limit_holds_where_the_recipe_names_none(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert option_default("sft", "max_length") == SFTConfig.max_length
    monkeypatch.setattr(preprocess, "option_default", lambda *_: 20)
    with pytest.raises(UserError, match=r"\d+ of 50 rows are longer than the limit of 20"):
        preprocessed(tmp_path, "first", tree(base))


def test_a_scratch_model_is_the_same_for_every_run(tmp_path: Path, base: Path) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    recipe = tree(base) | {"model": {"scratch": sizes | {"num_key_value_heads": 2}}}
    first, second = (preprocessed(tmp_path, name, recipe) for name in ("first", "second"))
    assert first[0] == second[0] and second[1]
    models = [RunDir(tmp_path, name).model("base") for name in ("first", "second")]
    files = [{path.name: path.read_bytes() for path in model.iterdir()} for model in models]
    assert files[0] == files[1] and {"model.safetensors", "tokenizer.json"} <= files[0].keys()


def test_processes_work_what_one_does(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = {(row.premise, row.hypothesis) for row in ROWS}
    monkeypatch.setattr(completions, "CHUNK", 15)
    monkeypatch.setattr(completions, "PROGRESS_SECONDS", -1.0)
    monkeypatch.setattr(completions, "cpus_at_hand", lambda: 2)
    found = completions.work_all(pairs, "full", "sft")
    assert found == {(row.premise, row.hypothesis): text for row, text in zip(ROWS, RIGHT, strict=True)}
    assert "sft: 15 of 40 completions worked" in capsys.readouterr().out


def test_mixed_completions_are_reasoning_for_half_of_the_rows_and_answers_alone_for_the_others(base: Path) -> None:
    def made(**data: Any) -> list[str]:
        recipe = build_recipe("x", merge(tree(base), {"data": {"completions": "mixed", **data}}), "x.yaml")
        parts = load_rows(recipe.data, ["sft"], recipe.seed)
        texts = completions.worked_completions(recipe, parts, "sft")
        for row, text in zip(parts.rows["sft"], texts, strict=True):
            assert score(text, {"premise": row.premise, "hypothesis": row.hypothesis, "label": row.label}).correct
        return texts

    texts = made(rows={"sft": 400, "dev": 2, "test": 2})
    alone = [text in ("Therefore: Yes", "Therefore: No") for text in texts]
    assert 160 < sum(alone) < 240
    assert all(bare or text.startswith("Skeleton:") for text, bare in zip(texts, alone, strict=True))
    assert texts == made(rows={"sft": 400, "dev": 2, "test": 2})
