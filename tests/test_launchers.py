"""The training scripts below torchrun, accelerate and deepspeed, by hand: two processes, one result."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file
from test_slurm_dag import copy_project

from pipeline.run import RunDir
from pipeline.settings import dump_yaml

pytestmark = pytest.mark.training

GROUP = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
TWO = {
    "torchrun": ["torchrun", "--nproc_per_node=2"],
    "accelerate": ["accelerate", "launch", "--multi_gpu", "--num_processes", "2"],
    "deepspeed": ["deepspeed", "--num_gpus=2"],
}
SHORT = ["data.rows.sft=64", "data.rows.grpo=8", "data.rows.dev=4", "data.rows.test=4"]


class Project:
    """A copy of the project, and commands in it."""

    def __init__(self, home: Path) -> None:
        self.home = copy_project(home)
        self.env = {name: value for name, value in os.environ.items() if name not in GROUP}
        self.env.pop("WANDB_MODE", None)
        self.env |= {
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "PATH": f"{home}/.venv/bin:{os.environ['PATH']}",
        }
        self.env.pop("PYTHONPATH", None)

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start a command in a process group of its own."""
        pipe = subprocess.PIPE
        return subprocess.Popen(
            words, cwd=self.home, env=self.env, stdout=pipe, stderr=pipe, text=True, start_new_session=True
        )

    def call(self, *words: str, code: int = 0) -> str:
        """What a command says; it must end with `code`."""
        child = self.start(*words)
        out, err = child.communicate(timeout=420)
        assert child.returncode == code, out + err
        return out + err

    def run(self, name: str) -> RunDir:
        return RunDir(self.home, name)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The copy, with rows and a random model made by the run `alone`, whose sft stage one process trained."""
    made = Project(tmp_path_factory.mktemp("launchers") / "project")
    tracked = ["tracking.report_to=[tensorboard, wandb]", "tracking.mode=disabled", "sft.logging_steps=2"]
    words = ["smoke", *SHORT, *tracked, "--micro_batch_size", "8", "--run-name", "alone"]
    made.call("python", "scripts/train_sft.py", *words)
    return made


def same_weights(project: Project, stage: str, *names: str) -> None:
    """Equal up to the order in which two processes add what one adds."""
    first, *others = (load_file(project.run(name).model(stage) / "model.safetensors") for name in names)
    for other in others:
        assert first.keys() == other.keys()
        for key, value in first.items():
            assert value.allclose(other[key], atol=1e-5), key


def trained_below(project: Project, launcher: str, *more: str) -> None:
    name = f"below-{launcher}"
    words = [*TWO[launcher], "scripts/train_sft.py", "configs/smoke.yaml", *SHORT, "--run-name", name]
    told = project.call(*words, "--per_device_train_batch_size", "8", *more)
    assert told.count("now spelled: ") == 1, "the first process alone speaks"
    run = project.run(name)
    recipe, facts = run.read_resolved()
    assert (recipe.resources["sft"].processes, facts["via"]) == (2, "local")
    assert run.done("sft") and run.state("sft")["attempt"] == 1
    assert run.attempt_log("sft", 1, rank=1).exists()
    assert [line["step"] for line in run.read_metrics("sft") if "train_loss" in line] == [4]
    assert not list((project.home / "logs").glob(".ranks-*"))
    same_weights(project, "sft", "alone", name)


def test_torchrun_gives_what_one_process_with_accumulation_gives(project: Project) -> None:
    assert project.run("alone").read_resolved()[0].resources["sft"].launcher == "none"
    trained_below(project, "torchrun")
    again = project.call(*TWO["torchrun"], "scripts/train_sft.py", "smoke", *SHORT, "--run-name", "below-torchrun",
                         "--per_device_train_batch_size", "8")  # fmt: skip
    assert project.run("below-torchrun").state("sft")["attempt"] == 1, again
    [left] = (project.home / "logs").glob(".ranks-*")
    assert json.loads(left.read_text()) == {"logs": None}
    left.unlink()


def test_a_stage_tells_its_speed_to_tensorboard_too(project: Project) -> None:
    """The events stay when the checkpoints go; a disabled W&B leaves nothing."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = project.run("alone")
    lines = [line for line in run.read_metrics("sft") if "tokens_per_second" in line]
    assert [line["step"] for line in lines] == [2, 4]
    assert all(0 < line["useful_tokens_per_second"] <= line["tokens_per_second"] for line in lines)
    assert all(line["samples_per_second"] > 0 and line["tflops"] > 0 for line in lines)
    events = EventAccumulator(str(run.tensorboard("sft")))
    events.Reload()
    assert [each.step for each in events.Scalars("train/useful_tokens_per_second")] == [2, 4]
    assert not run.checkpoints("sft").exists() and not (run.stage("sft") / "wandb").exists()


@pytest.mark.long
def test_accelerate_gives_the_same(project: Project) -> None:
    trained_below(project, "accelerate")


@pytest.mark.long
@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_gives_the_same(project: Project, stage: int) -> None:
    """The first time, DeepSpeed compiles its kernels for the CPU for some minutes."""
    name = f"zero{stage}"
    TWO[name] = TWO["deepspeed"]
    trained_below(project, name, "--deepspeed", f"configs/deepspeed/zero{stage}.json")


def test_a_refusal_is_told_once_and_ends_all(project: Project) -> None:
    told = project.call(*TWO["torchrun"], "scripts/train_sft.py", "smoke", "--lerning_rate", "1", code=1)
    assert told.count("error: unknown key: 'lerning_rate' in smoke.yaml -> did you mean 'learning_rate'?") == 1
    assert not list((project.home / "logs").glob(".ranks-*"))


@pytest.mark.long
def test_a_stop_saves_and_the_next_launch_goes_on(project: Project) -> None:
    words = [*TWO["torchrun"], "scripts/train_sft.py", "smoke", *SHORT, "--run-name", "stopped", "sft.max_steps=400",
             "sft.logging_steps=1"]  # fmt: skip
    run, child = project.run("stopped"), project.start(*words)
    until(lambda: any(line["step"] >= 3 for line in run.read_metrics("sft")), child)
    child.send_signal(signal.SIGTERM)
    child.communicate(timeout=120)
    state = run.state("sft")
    assert (state["state"], state["exit_code"]) == ("interrupted", 130), state
    reached = max(line["step"] for line in run.read_metrics("sft"))
    project.call(*words)
    assert f"going on from the checkpoint of step {reached}" in run.latest_log("sft").read_text()
    assert sorted(line["step"] for line in run.read_metrics("sft") if "loss" in line) == list(range(1, 401))


@pytest.mark.long
def test_two_processes_train_grpo_from_a_flat_file(project: Project) -> None:
    flat = {"model_name_or_path": "./models/alone_sft_model", "num_generations": 4, "max_completion_length": 12,
            "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "correct_reward": 1.0,
            "incorrect_reward": -1.0, "reasoning_length_bonus": 0.1, "learning_rate": 1e-4, "bf16": False,
            "report_to": "none", "output_dir": "./models/flat_grpo", "max_steps": 2}  # fmt: skip
    (project.home / "grpo_config.yaml").write_text(dump_yaml(flat))
    rows = ["data.source=generated", "data.max_variables=4", "data.rows.grpo=8", "data.rows.dev=4", "data.rows.test=4"]
    told = project.call(*TWO["torchrun"], "scripts/train_grpo.py", "grpo_config.yaml", *rows)
    assert "grpo.rewards.reasoning_length_bonus=0.1" in told
    run = project.run("grpo_config")
    assert [line["step"] for line in run.read_metrics("grpo") if "train_loss" in line] == [2]
    assert (project.home / "models" / "flat_grpo" / "model.safetensors").is_file()


def until(reached: Callable[[], bool], child: subprocess.Popen[str]) -> None:
    """Wait for something that a process does."""
    end = time.monotonic() + 240
    while not reached():
        assert child.poll() is None and time.monotonic() < end
        time.sleep(0.05)
