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

from pipeline.load import build_recipe
from pipeline.records import file_hash
from pipeline.run import HOME, RunDir
from pipeline.settings import read_yaml

pytestmark = pytest.mark.training

NOT_COMPARED = ("time", "step_time", "train_runtime", "train_samples_per_second", "train_steps_per_second")
"""What the clock says: other in every run."""
INTERRUPT = Path(__file__).parent / "interrupt.py"
SETTINGS: dict[str, dict[str, Any]] = {
    "sft": {"max_steps": 11, "logging_steps": 3, "checkpoint": {"every_steps": 4, "keep": 2}},
}
"""Three epochs of four steps less one; logs and checkpoints fall on different steps."""


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


def metrics(run: RunDir, stage: str) -> list[dict[str, Any]]:
    """What a stage logged, without the clock."""
    return [{k: v for k, v in line.items() if k not in NOT_COMPARED} for line in run.read_metrics(stage)]


def assert_same(run: RunDir, other: RunDir, stage: str) -> None:
    """The same weights, bit by bit, and the same log."""
    assert metrics(run, stage) == metrics(other, stage)
    assert file_hash(run.model(stage) / "model.safetensors") == file_hash(other.model(stage) / "model.safetensors")


@pytest.mark.parametrize(
    ("name", "moment", "step"),
    [("SIGTERM", "step", 5), ("SIGUSR1", "step", 8), ("SIGKILL", "step", 7), ("SIGKILL", "save", 8)],
)
def test_sft_goes_on_exactly(
    prepared: RunDir, undisturbed: RunDir, tmp_path: Path, name: str, moment: str, step: int
) -> None:
    run = copy(prepared, tmp_path)
    ended = call(str(INTERRUPT), str(run.logs), "sft", "sft", name, moment, str(step), "0")
    assert ended.returncode == (-signal.SIGKILL if name == "SIGKILL" else 130), ended.stdout + ended.stderr
    assert not (run.model("sft") / "model.safetensors").exists()
    again = launch(run, "sft")
    assert again.returncode == 0, again.stdout + again.stderr
    reached = step if name != "SIGKILL" else 4
    assert f"going on from the checkpoint of step {reached}" in run.latest_log("sft").read_text()
    assert_same(run, undisturbed, "sft")
