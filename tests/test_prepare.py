"""A teacher's right answers as a data set on disk, and the scripts around it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.causal.generate import Row, sample
from pipeline.errors import UserError
from pipeline.load import load_recipe, recipe_file
from pipeline.recipe_data import Data
from pipeline.run import HOME, RunDir
from pipeline.submit.environment import ask_torch, check_pins, check_room, check_torch, check_tracking
from pipeline.tasks.corr2cause import message, worked
from pipeline.tasks.prepare import SUMMARY, prepare, split
from pipeline.tasks.teacher import read_teacher

ROWS = sample("train", [3, 4], 40, 1, "label")


def teach(path: Path, rows: list[Row], *wrong: Row) -> Data:
    """Right answers to rows, and wrong ones."""
    said = [(row, worked(row.premise, row.hypothesis, "full")) for row in rows]
    said += [(row, f"Therefore: {'No' if row.label else 'Yes'}") for row in wrong]
    values = [{"premise": row.premise, "hypothesis": row.hypothesis, "label": row.label, "completion": text}
              for row, text in said]  # fmt: skip
    path.write_text(json.dumps({"header": {"model": "gpt"}, "predictions": values}))
    return Data(completions="teacher", teacher=str(path))


def test_right_answers_become_a_data_set(tmp_path: Path) -> None:
    from datasets import load_from_disk

    out = tmp_path / "sft_deepseek"
    summary = prepare(teach(tmp_path / "gpt.json", ROWS[:30], *ROWS[30:]), out)
    assert (summary["predictions"], summary["used"], summary["wrong"]) == (40, 30, 10)
    assert json.loads((out / SUMMARY).read_text()) == summary
    found = load_from_disk(str(out))
    labels = [row.label for row in ROWS[:30]]
    held = sum(round(0.15 * labels.count(label)) for label in (0, 1))
    assert {name: len(part) for name, part in found.items()} == {"train": 30 - held, "validation": held}
    for label in (0, 1):
        assert found["validation"]["label"].count(label) == round(0.15 * labels.count(label))
    first = found["train"][0]
    row = next(row for row in ROWS if (row.premise, row.hypothesis) == (first["premise"], first["hypothesis"]))
    assert first["prompt"] == message(row.premise, row.hypothesis, "default")
    assert first["completion"] == worked(row.premise, row.hypothesis, "full")
    again = read_teacher(out / "teacher.jsonl")
    assert [each.completion for each in again] == found["train"]["completion"]
    assert prepare(teach(tmp_path / "gpt.json", ROWS[:30], *ROWS[30:]), out) == summary, "made anew"


def test_a_false_step_is_left_out_where_that_is_asked(tmp_path: Path) -> None:
    data = teach(tmp_path / "gpt.json", ROWS[:6])
    values = json.loads((tmp_path / "gpt.json").read_text())
    text = values["predictions"][0]["completion"]
    broken = text.replace(" - ", " > ", 1) if " - " in text else text.replace("Skeleton: ", "Skeleton: A - A, ", 1)
    assert broken != text
    values["predictions"][0]["completion"] = broken
    (tmp_path / "gpt.json").write_text(json.dumps(values))
    assert prepare(data, tmp_path / "all")["used"] == 6
    assert prepare(data, tmp_path / "sound", check_steps=True)["false_steps"] == 1


def test_validation_is_the_same_for_a_seed_and_of_each_label() -> None:
    from pipeline.tasks.prepare import Example

    examples = [Example(row, "x") for row in ROWS]
    first, again, other = (split(examples, 0.25, seed)["validation"] for seed in (1, 1, 2))
    assert first == again != other
    assert split(examples, 0.0, 1)["validation"] == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"header": {}, "predictions": [{"premise": "x", "answer": 1}]}', r"no text under `completion`.*mend"),
        ('{"header": {}, "predictions": []}', "a prediction file without predictions"),
        ('[{"completion": "x"}]', "not a prediction file"),
    ],
)
def test_a_file_of_another_schema_is_refused(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "gpt.json").write_text(text)
    with pytest.raises(UserError, match=told):
        prepare(Data(completions="teacher", teacher=str(tmp_path / "gpt.json")), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_teacher_who_is_never_right_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no prediction of the teacher can be used: \{'wrong': 4\}"):
        prepare(teach(tmp_path / "gpt.json", [], *ROWS[:4]), tmp_path / "out")


def test_another_folder_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("")
    with pytest.raises(UserError, match="is no prepared data set"):
        prepare(teach(tmp_path / "gpt.json", ROWS[:4]), tmp_path / "out")
    assert (tmp_path / "out" / "thesis.tex").exists()


def script(name: str, *words: str, code: int = 0) -> str:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    command = [sys.executable, str(HOME / "scripts" / f"{name}.py"), *words]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_script_writes_where_it_is_told(tmp_path: Path) -> None:
    teach(tmp_path / "gpt.json", ROWS[:10])
    told = script("prepare_sft_data", str(tmp_path / "gpt.json"), "--out", str(tmp_path / "set"))
    assert '"used": 10' in told and f"--dataset_path {tmp_path / 'set'}" in told
    told = script("prepare_sft_data", str(tmp_path / "absent.json"), code=2)
    assert told.startswith("error: no such prediction file: ") and " -> " in told


# -- this machine -------------------------------------------------------------------------------------------------


def test_packages_are_compared_with_their_pins(tmp_path: Path) -> None:
    assert all(check.good for check in check_pins(HOME / "requirements.txt"))
    (tmp_path / "requirements.txt").write_text("# pins\nnumpy==0.1\nno-such-package==1.0\n")
    [check] = check_pins(tmp_path / "requirements.txt")
    assert not check.good and "no-such-package absent (pinned 1.0)" in check.told and "numpy" in check.told


def gpu(name: str, *, bf16: bool) -> dict[str, Any]:
    return {"torch": "2", "gpus": [{"name": name, "gb": 11.0, "bf16": bf16}], "four_bit": ""}


def test_gpus_are_compared_with_what_the_recipe_asks_for() -> None:
    recipe = load_recipe(recipe_file(HOME, "robust-llama2"))
    assert [each.good for each in check_torch(recipe, gpu("new", bf16=True))] == [True, True, True]
    old = check_torch(recipe, gpu("old", bf16=False))
    assert [each.good for each in old] == [True, False, True] and old[1].fix == "model.precision=auto"
    broken = check_torch(recipe, {**gpu("new", bf16=True), "four_bit": "no kernel"})
    assert broken[-1].good is False and broken[-1].told == "no kernel"
    assert check_torch(recipe, {"torch": "2", "gpus": [], "four_bit": ""})[0].good is None
    assert [each.good for each in check_torch(recipe, "no torch")] == [False]


def test_torch_tells_of_this_machine_from_a_process_of_its_own(tmp_path: Path) -> None:
    found = ask_torch()
    assert isinstance(found, dict) and found["four_bit"] == ""
    assert check_room(tmp_path).told.endswith(f"under {tmp_path}")


def test_wandb_online_needs_a_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    assert check_tracking(load_recipe(recipe_file(HOME, "phi3"))).good
    online = load_recipe(recipe_file(HOME, "phi3"), ["tracking.mode=online"])
    assert check_tracking(online).fix.startswith("wandb login")
    monkeypatch.setenv("WANDB_API_KEY", "k")
    assert check_tracking(online).good
    assert RunDir(tmp_path, "r").logs == tmp_path / "logs" / "r"
