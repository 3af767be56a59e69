"""An interrupted training stage ends with the very weights, optimizer-exact, and log of an undisturbed one."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from clock import CLOCK

from pipeline.evaluation.predictions import read_predictions
from pipeline.load import build_recipe
from pipeline.recipe import Resources
from pipeline.records import file_hash
from pipeline.remedies import propose
from pipeline.run import HOME, RunDir
from pipeline.settings import read_yaml

pytestmark = pytest.mark.training

INTERRUPT = Path(__file__).parent / "interrupt.py"
SETTINGS: dict[str, dict[str, Any]] = {
    "sft": {
        "max_steps": 11, "logging_steps": 3, "checkpoint": {"every_steps": 4, "keep": 2}, "learning_rate": 1e-2,
        "muon": {"learning_rate": 0.02},
    },
    "grpo": {
        "max_steps": 22, "logging_steps": 3, "checkpoint": {"every_steps": 4, "keep": 2}, "micro_batch_size": 4,
        "num_iterations": 2, "learning_rate": 2e-3, "temperature": 0.7,
        "guard": {"every_steps": 5, "rows": 48, "stop_below": 0},
    },
}  # fmt: skip
"""More than two epochs; logs, checkpoints, measurements and generations fall on different steps."""


def environment(**extra: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(HOME), **extra}


def call(*words: str, **extra: str) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments as the job body would."""
    return subprocess.run(
        [sys.executable, *words], env=environment(**extra), cwd=HOME, capture_output=True, text=True, timeout=240,
        check=False,
    )  # fmt: skip


def launch(run: RunDir, stage: str) -> subprocess.CompletedProcess[str]:
    return call("-m", "pipeline.training.launch", str(run.logs), stage)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run of configs/smoke.yaml with a few more steps, its rows ready."""
    run = RunDir(tmp_path_factory.mktemp("resume"), "r")
    tree = read_yaml(HOME / "configs" / "smoke.yaml")
    tree["seed"] = 6
    tree["data"] |= {"completions": "answer", "max_variables": 5}
    tree["data"]["rows"] |= {"grpo": 12, "dev": 48}
    tree["evaluate"] |= {"batch_size": 10, "temperature": 0.5}
    for stage, more in SETTINGS.items():
        tree[stage] |= more
    run.write_resolved(build_recipe("smoke", tree, "smoke.yaml"), {})
    done = launch(run, "preprocess")
    assert done.returncode == 0, done.stdout + done.stderr
    return run


def copy(run: RunDir, folder: Path) -> RunDir:
    """The same run elsewhere."""
    shutil.copytree(run.root, folder, dirs_exist_ok=True)
    return RunDir(folder, run.name)


@pytest.fixture(scope="module")
def undisturbed(prepared: RunDir, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """The run with its stages trained without a break."""
    run = copy(prepared, tmp_path_factory.mktemp("undisturbed"))
    for stage in SETTINGS:
        done = launch(run, stage)
        assert done.returncode == 0, done.stdout + done.stderr
    return run


def forget(run: RunDir, stage: str) -> None:
    """Delete all that a stage made."""
    shutil.rmtree(run.stage(stage))
    shutil.rmtree(run.model(stage))


def metrics(run: RunDir, stage: str) -> list[dict[str, Any]]:
    """What a stage logged, without the clock."""
    return [{k: v for k, v in line.items() if k not in CLOCK} for line in run.read_metrics(stage)]


def assert_same(run: RunDir, other: RunDir, stage: str) -> None:
    """The same weights, bit by bit, and the same log."""
    assert metrics(run, stage) == metrics(other, stage)
    assert file_hash(run.model(stage) / "model.safetensors") == file_hash(other.model(stage) / "model.safetensors")


def interrupt(run: RunDir, stage: str, name: str, moment: str, step: int) -> None:
    """Train until a signal comes at that moment; no model is there then."""
    ended = call(str(INTERRUPT), str(run.logs), stage, stage, name, moment, str(step), "0")
    assert ended.returncode == (-signal.SIGKILL if name == "SIGKILL" else 130), ended.stdout + ended.stderr
    assert not (run.model(stage) / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("stage", "name", "moment", "step", "saved"),
    [
        pytest.param("sft", "SIGTERM", "step", 5, 5, marks=pytest.mark.long),
        pytest.param("sft", "SIGUSR1", "step", 8, 8, marks=pytest.mark.long),
        pytest.param("sft", "SIGKILL", "step", 7, 4, marks=pytest.mark.long),
        ("sft", "SIGKILL", "save", 8, 4),
        ("grpo", "SIGTERM", "step", 17, 18),
        pytest.param("grpo", "SIGUSR1", "step", 3, 4, marks=pytest.mark.long),
        pytest.param("grpo", "SIGKILL", "step", 11, 8, marks=pytest.mark.long),
    ],
)
def test_a_stage_goes_on_exactly(
    undisturbed: RunDir, tmp_path: Path, stage: str, name: str, moment: str, step: int, saved: int
) -> None:
    run = copy(undisturbed, tmp_path)
    forget(run, stage)
    interrupt(run, stage, name, moment, step)
    again = launch(run, stage)
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"going on from the checkpoint of step {saved}" in run.latest_log(stage).read_text()
    assert_same(run, undisturbed, stage)


@pytest.mark.long
@pytest.mark.parametrize(("stage", "step", "saved"), [("sft", 5, 5), ("grpo", 17, 18)])
def test_half_the_micro_batch_goes_on_with_the_same_rows(
    undisturbed: RunDir, tmp_path: Path, stage: str, step: int, saved: int
) -> None:
    """What follows a failure for GPU memory; sums are made in another order, so that the last bits may differ."""
    run = copy(undisturbed, tmp_path)
    forget(run, stage)
    interrupt(run, stage, "SIGTERM", "step", step)
    remedy = propose(run.read_resolved()[0], stage, 1, "GPU memory", "", "", [])
    assert remedy is not None
    run.add_remedy(remedy)
    again = launch(run, stage)
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"going on from the checkpoint of step {saved}" in run.latest_log(stage).read_text()
    ours, theirs = ([line for line in metrics(each, stage) if "loss" in line] for each in (run, undisturbed))
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    assert ours[-1]["num_tokens"] == theirs[-1]["num_tokens"], "the same rows"
    for mine, other in zip(ours, theirs, strict=True):
        assert mine["loss"] == pytest.approx(other["loss"], rel=0.02, abs=1e-3)


def test_evaluation_keeps_the_answers_that_it_has(undisturbed: RunDir, tmp_path: Path) -> None:
    run = copy(undisturbed, tmp_path)
    assert launch(run, "evaluate").returncode == 0
    whole = {path.name: read_predictions(path) for path in run.prediction_files()}
    shutil.rmtree(run.results)
    shutil.rmtree(run.stage("evaluate"))
    ended = call(str(INTERRUPT), str(run.logs), "evaluate", "evaluate", "SIGTERM", "batch", "6", "0")
    assert ended.returncode == 130, ended.stdout + ended.stderr
    assert "stopped after 20 of 40 rows of sft" in ended.stdout
    partial = run.partial_predictions("sft")
    with partial.open("a") as file:
        file.write('[39, {"text": "torn')
    ended = call(str(INTERRUPT), str(run.logs), "evaluate", "evaluate", "SIGKILL", "batch", "2", "0")
    assert ended.returncode == -signal.SIGKILL
    again = launch(run, "evaluate")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "base: predictions are there already" in again.stdout
    assert "sft: 30 rows are answered already" in again.stdout
    assert not partial.exists()
    assert {path.name: read_predictions(path).rows for path in run.prediction_files()} == {
        name: each.rows for name, each in whole.items()
    }
    assert [line["model"] for line in run.read_metrics("evaluate") if "model" in line] == ["base", "sft", "grpo"]


@pytest.fixture(scope="module")
def pair(prepared: RunDir, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """The run with its stages trained by two processes without a break."""
    run = copy(prepared, tmp_path_factory.mktemp("pair"))
    recipe, _ = run.read_resolved()
    two = Resources(launcher="torchrun", processes=2)
    run.write_resolved(recipe.model_copy(update={"resources": {**recipe.resources, "sft": two, "grpo": two}}), {})
    for stage in SETTINGS:
        done = launch(run, stage)
        assert done.returncode == 0, done.stdout + done.stderr
    return run


@pytest.mark.parametrize(
    ("stage", "name", "step", "saved"),
    [
        pytest.param("sft", "SIGTERM", 5, 5, marks=pytest.mark.long),
        pytest.param("sft", "SIGKILL", 7, 4, marks=pytest.mark.long),
        ("grpo", "SIGTERM", 3, 4),
    ],
)
def test_two_processes_go_on_exactly(
    pair: RunDir, tmp_path: Path, stage: str, name: str, step: int, saved: int
) -> None:
    """One of them alone gets the signal; they agree on the step at which they stop."""
    run = copy(pair, tmp_path)
    forget(run, stage)
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(INTERRUPT)]
    ended = call(*start, str(run.logs), stage, stage, name, "step", str(step), "1")
    assert ended.returncode == 1, "the launcher's code when a rank ends with another than 0"
    assert not (run.model(stage) / "model.safetensors").exists()
    again = launch(run, stage)
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"going on from the checkpoint of step {saved}" in run.latest_log(stage).read_text()
    assert_same(run, pair, stage)


def test_another_number_of_processes_is_refused_before_any_starts(pair: RunDir, tmp_path: Path) -> None:
    run = copy(pair, tmp_path)
    forget(run, "sft")
    interrupt(run, "sft", "SIGTERM", "step", 5)
    refused = launch(run, "sft")
    assert refused.returncode == 2
    assert "1 processes wrote the checkpoint to go on from, now there are: 2" in refused.stderr
    assert run.state("sft")["state"] == "failed"


@pytest.mark.parametrize("quantization", [pytest.param("none", marks=pytest.mark.long), "nf4"])
def test_adapters_go_on_exactly(prepared: RunDir, tmp_path: Path, quantization: str) -> None:
    run = RunDir(tmp_path / "undisturbed", "r")
    tree = read_yaml(HOME / "configs" / "smoke.yaml")
    tree["model"] = {"base": str(prepared.model("base")), "lora": {"dropout": 0.1}, "quantization": quantization}
    tree["model"]["precision"] = "fp32" if quantization == "none" else "bf16"
    tree["data"]["completions"] = "answer"
    tree["sft"] |= {**SETTINGS["sft"], "muon": None}
    run.write_resolved(build_recipe("smoke", tree, "smoke.yaml"), {})
    assert launch(run, "preprocess").returncode == 0
    other = copy(run, tmp_path / "disturbed")
    assert launch(run, "sft").returncode == 0
    interrupt(other, "sft", "SIGTERM", "step", 6)
    assert launch(other, "sft").returncode == 0
    assert metrics(run, "sft") == metrics(other, "sft")
    weights, others = (file_hash(each.model("sft") / "adapter_model.safetensors") for each in (run, other))
    assert weights == others
