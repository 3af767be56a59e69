"""DPO and PPO as stages of a run: what they leave, what the report shows, and that an interrupted one ends the same."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from clock import CLOCK, assert_speed_is_logged
from safetensors import safe_open

from pipeline.evaluation.schema import read_comparison
from pipeline.load import build_recipe
from pipeline.recipe import Lora
from pipeline.records import file_hash
from pipeline.run import HOME, RunDir
from pipeline.settings import merge, read_yaml

pytestmark = pytest.mark.training

INTERRUPT = Path(__file__).parent / "interrupt.py"
ROWS = [{"question": f"{n}", "answer": f"#### {n % 2}"} for n in range(150)]
"""Odd or even: a model that has learned the form alone is right half of the time."""
CHANGES: dict[str, Any] = {
    "task": "gsm8k",
    "stages": ["preprocess", "sft", "dpo", "ppo", "evaluate"],
    "data": {"rows": {"sft": 64, "dpo": 24, "ppo": 24, "dev": 16, "test": 16}, "template": "plain"},
    "sft": {"max_steps": 40, "learning_rate": 1e-2, "dev": {"rows": 16, "max_completion_length": 6}},
    "dpo": {
        "global_batch_size": 4, "micro_batch_size": 2, "samples": 4, "temperature": 1.0, "max_completion_length": 6,
        "learning_rate": 1e-3, "max_steps": 9, "logging_steps": 2, "checkpoint": {"every_steps": 4, "keep": 2},
        "guard": {"every_steps": 5, "rows": 8, "stop_below": 0.0},
    },
    "ppo": {
        "global_batch_size": 8, "micro_batch_size": 4, "num_generations": 2, "max_completion_length": 6,
        "learning_rate": 1e-3, "max_steps": 9, "num_iterations": 2, "logging_steps": 2, "kl_coefficient": 0.1,
        "checkpoint": {"every_steps": 4, "keep": 2}, "guard": {"every_steps": 5, "rows": 8, "stop_below": 0.0},
    },
}  # fmt: skip


def run_of(root: Path, **changes: Any) -> RunDir:
    """A run of configs/smoke.yaml on these rows."""
    source = root / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    tree = read_yaml(HOME / "configs" / "smoke.yaml")
    del tree["grpo"], tree["resources"]
    tree["data"] = {"source": str(source)}
    run = RunDir(root, "r")
    run.write_resolved(build_recipe("smoke", merge(merge(tree, CHANGES), changes), "smoke.yaml"), {})
    return run


def call(*words: str) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(HOME)}
    return subprocess.run(
        [sys.executable, *words], env=env, cwd=HOME, capture_output=True, text=True, timeout=240, check=False
    )


def stage(run: RunDir, name: str) -> str:
    """Run one stage; what it said."""
    done = call("-m", f"pipeline.stages.{name}", str(run.logs), name)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run whose stages were never interrupted."""
    run = run_of(tmp_path_factory.mktemp("rl"))
    imports = "from importlib import import_module; from pathlib import Path"  # one process: its imports take seconds
    each = f"import_module(f'pipeline.stages.{{name}}').main(Path({str(run.logs)!r}), name)"
    done = call("-c", f"{imports}\nfor name in {CHANGES['stages']}: {each}")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return run


def line_with(run: RunDir, name: str, key: str) -> dict[str, Any]:
    """The last line of a stage's metrics that has a key."""
    return [line for line in run.read_metrics(name) if key in line][-1]


def test_each_stage_records_its_speed(whole: RunDir) -> None:
    for name in ("sft", "dpo", "ppo"):
        assert_speed_is_logged(whole.read_metrics(name))


def test_each_stage_records_what_it_raises_before_and_after(whole: RunDir) -> None:
    assert {"before_accuracy", "after_accuracy"} <= line_with(whole, "sft", "after_accuracy").keys()
    pairs = line_with(whole, "dpo", "held_out_pairs")
    assert pairs["pairs"] >= 4 and pairs["held_out_pairs"] >= 1 and 0 < pairs["sampled_accuracy"] < 1
    dpo = line_with(whole, "dpo", "after_preference_accuracy")
    assert dpo["before_preference_accuracy"] == 0.5 and dpo["before_reward_margin"] == 0
    assert {"after_preference_accuracy", "after_reward_margin", "after_chosen_likelier"} <= dpo.keys()
    assert {"before_accuracy", "after_accuracy"} <= line_with(whole, "dpo", "best_step").keys()
    assert {"rewards/accuracies", "rewards/margins"} <= line_with(whole, "dpo", "rewards/margins").keys()
    ppo = line_with(whole, "ppo", "best_step")
    assert {"before_accuracy", "after_accuracy"} <= ppo.keys()
    assert {"before_reward", "after_reward"} <= line_with(whole, "ppo", "after_reward").keys()
    assert {"kl", "value", "return", "value_loss"} <= line_with(whole, "ppo", "kl").keys()


def test_models_have_no_value_head_and_are_compared_in_a_chain(whole: RunDir) -> None:
    with safe_open(whole.model("ppo") / "model.safetensors", "pt") as file:
        names = set(file.keys())
    with safe_open(whole.model("sft") / "model.safetensors", "pt") as file:
        assert names == set(file.keys())
    comparison = read_comparison(whole.comparison)
    assert comparison is not None and {"sft", "dpo", "ppo"} <= comparison.solved.keys()
    assert {"dpo-sft", "ppo-dpo", "ppo-sft"} <= comparison.solved_pairs.keys()
    page = whole.report.read_text(encoding="utf-8")
    assert "dpo - sft" in page and "ppo - dpo" in page
    assert "dpo" in (whole.model("dpo") / "README.md").read_text(encoding="utf-8")


def copied(run: RunDir, folder: Path, name: str) -> RunDir:
    """The run elsewhere, without what one of its stages made."""
    shutil.copytree(run.root, folder, dirs_exist_ok=True)
    other = RunDir(folder, run.name)
    shutil.rmtree(other.stage(name))
    shutil.rmtree(other.model(name))
    return other


def told(run: RunDir, name: str) -> list[dict[str, Any]]:
    """What a stage logged, without the clock."""
    return [{k: v for k, v in line.items() if k not in CLOCK} for line in run.read_metrics(name)]


def assert_goes_on_exactly(run: RunDir, other: RunDir, name: str, moment: str, at: int, file: str) -> str:
    """Interrupt a stage of `other` and start it again: weights and log are those of `run`. What it then said."""
    ended = call(str(INTERRUPT), str(other.logs), name, name, "SIGTERM", moment, str(at), "0")
    assert ended.returncode == 130, ended.stdout + ended.stderr
    assert not (other.model(name) / file).exists()
    said = stage(other, name)
    assert told(other, name) == told(run, name)
    assert file_hash(other.model(name) / file) == file_hash(run.model(name) / file)
    return said


@pytest.mark.parametrize(
    ("name", "moment", "at", "says"),
    [
        pytest.param("dpo", "step", 5, "going on from the checkpoint of step 5", marks=pytest.mark.long),
        ("ppo", "step", 5, "going on from the checkpoint of step 6"),
        pytest.param("dpo", "batch", 1, "pairs", marks=pytest.mark.long),
        pytest.param("ppo", "step", 2, "going on from the checkpoint of step 2", marks=pytest.mark.long),
    ],
)
def test_an_interrupted_stage_goes_on_exactly(
    whole: RunDir, tmp_path: Path, name: str, moment: str, at: int, says: str
) -> None:
    other = copied(whole, tmp_path, name)
    assert says in assert_goes_on_exactly(whole, other, name, moment, at, "model.safetensors")


@pytest.mark.long
@pytest.mark.parametrize("name", ["dpo", "ppo"])
def test_adapters_go_on_exactly(whole: RunDir, tmp_path: Path, name: str) -> None:
    """An adapter and a value head beside it; the reference is a copy of the adapter."""
    run = copied(whole, tmp_path / "one", name)
    recipe, _ = run.read_resolved()
    base = {"base": str(whole.model("sft")), "scratch": None, "lora": Lora(r=4, dropout=0.1)}
    kept = ("preprocess", name)
    change = {
        "model": recipe.model.model_copy(update=base),
        "data": recipe.data.model_copy(update={"rows": {key: recipe.data.rows[key] for key in (name, "dev", "test")}}),
        "stages": [entry for entry in recipe.stages if entry.name in kept],
        "sections": {key: recipe.sections[key] for key in kept},
        "resources": {key: recipe.resources[key] for key in kept},
    }
    run.write_resolved(recipe.model_copy(update=change), {})
    stage(run, "preprocess")
    other = RunDir(tmp_path / "two", run.name)
    shutil.copytree(run.root, other.root)
    stage(run, name)
    assert_goes_on_exactly(run, other, name, "step", 5, "adapter_model.safetensors")
    assert not list(run.model(name).rglob("*value*")) and not (run.model(name) / "ref").exists()


@pytest.mark.parametrize("name", [pytest.param("dpo", marks=pytest.mark.long), "ppo"])
def test_two_processes_share_the_work(whole: RunDir, tmp_path: Path, name: str) -> None:
    run = copied(whole, tmp_path, name)
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", f"pipeline.stages.{name}"]
    done = call(*start, str(run.logs), name)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    last = line_with(run, name, "best_step")
    assert last["before_accuracy"] == line_with(whole, name, "best_step")["before_accuracy"]
