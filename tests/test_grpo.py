"""A real GRPO stage: every part of the reward in its metrics, health checks that speak and that stop it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from clock import assert_speed_is_logged

from pipeline import show
from pipeline.load import build_recipe
from pipeline.run import HOME, RunDir
from pipeline.settings import merge, read_yaml

pytestmark = pytest.mark.training

PARTS = ["answer", "class_balanced", "true_steps", "format", "reasoning_length", "length_penalty"]
GRPO = {"loss_type": "dr_grpo", "scale_rewards": "none", "importance_sampling_level": "sequence", "beta": 0.04,
        "logging_steps": 1, "rewards": {"class_balanced": 0.5, "length_penalty": 0.25}}  # fmt: skip


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a run of configs/smoke.yaml, without its SFT, has its data and its random model."""
    root = tmp_path_factory.mktemp("grpo")
    done = launch(run_of(root), "preprocess")
    assert done.returncode == 0, done.stdout + done.stderr
    return root


def run_of(root: Path, **changes: Any) -> RunDir:
    tree = read_yaml(HOME / "configs" / "smoke.yaml")
    tree = merge(tree, {"stages": ["preprocess", "grpo"], "grpo": GRPO, **changes})
    del tree["sft"], tree["evaluate"], tree["data"]["rows"]["sft"]
    tree["resources"] = {name: tree["resources"][name] for name in ("preprocess", "grpo")}
    run = RunDir(root, "r")
    run.write_resolved(build_recipe("smoke", tree, "smoke.yaml"), {})
    return run


def launch(run: RunDir, stage: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "pipeline.training.launch", str(run.logs), stage]
    return subprocess.run(command, env=env, cwd=HOME, capture_output=True, text=True, timeout=240, check=False)


def test_every_part_is_logged_apart_with_groups_and_kl(prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of(prepared)
    done = launch(run, "grpo")
    log = run.latest_log("grpo").read_text()
    assert done.returncode == 0, done.stdout + done.stderr + log
    lines = run.read_metrics("grpo")
    assert_speed_is_logged(lines)
    steps = [line for line in lines if "reward" in line]
    assert [line["step"] for line in steps] == [1, 2]
    for line in steps:
        assert {f"rewards/{part}/mean" for part in PARTS} <= line.keys()
        parts = {part: line[f"rewards/{part}/mean"] for part in PARTS}
        assert line["reward"] == pytest.approx(
            parts["answer"] + 0.5 * parts["class_balanced"] + 0.5 * parts["true_steps"] + 0.25 * parts["length_penalty"]
        )
        assert line["groups_without_signal"] == line["frac_reward_zero_std"]
        assert line["kl"] >= 0
        assert line["share_yes"] + line["share_no"] + line["unparsable"] == pytest.approx(1.0)
        assert 0 < line["reward_time"] < line["step_time"]
    dev = [line for line in lines if "dev_f1" in line]
    assert [line["step"] for line in dev] == [0, 2]
    assert {"dev_share_yes", "dev_share_no", "dev_unparsable", "dev_true_steps"} <= dev[0].keys()
    found = show.health_found(run, "grpo")
    assert found[0] == "answers on dev rows can hardly ever be parsed (step 0)"
    assert "warning: training health: answers on dev rows can hardly ever be parsed (step 0)" in log
    show.health(run, run.read_resolved()[0])
    assert f"warning: grpo: {found[0]}" in capsys.readouterr().out


def test_a_stage_whose_answers_are_of_one_kind_stops_when_the_recipe_asks(prepared: Path) -> None:
    run = run_of(prepared, health={"stop": True})
    run.unmark("grpo")
    done = launch(run, "grpo")
    assert done.returncode == 1
    assert "answers on dev rows can hardly ever be parsed" in run.state("grpo")["reason"]
    assert show.health_found(run, "grpo") == ["answers on dev rows can hardly ever be parsed (step 0)"]
    assert run.done("grpo") is None


def test_continuous_batching_leaves_adapters_as_precise_as_they_were(prepared: Path) -> None:
    """TRL makes the whole policy 16-bit for it; small steps would be lost in rounding from then on."""
    import torch
    from safetensors.torch import load_file

    model = {"precision": "bf16", "lora": {"r": 4}}
    run = run_of(prepared, model=model, grpo={**GRPO, "generation": "continuous"})
    run.unmark("grpo")
    done = launch(run, "grpo")
    log = run.latest_log("grpo").read_text()
    assert done.returncode == 0, done.stdout + done.stderr + log
    lines = [line for line in run.read_metrics("grpo") if "reward" in line]
    assert [line["step"] for line in lines][-2:] == [1, 2]
    assert all(line["completions/mean_length"] > 0 for line in lines)
    adapters = load_file(run.model("grpo") / "adapter_model.safetensors")
    assert all(weight.dtype == torch.float32 for weight in adapters.values())
