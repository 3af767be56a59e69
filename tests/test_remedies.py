"""Failures on a real Slurm that mend themselves: in the same job, or by a new one that the dependents then wait for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Slurm
from launching import STAGES, Project

from pipeline.run import RunDir

pytestmark = pytest.mark.slurm

ONCE = "if not (run.logs / 'failed-once').exists():\n    (run.logs / 'failed-once').touch()\n    {}\n"
OUT_OF_GPU_MEMORY = "import torch; raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB')"


@pytest.fixture(scope="module")
def project(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    yield Project(tmp_path_factory.mktemp("remedies") / "project", slurm)


def finish(project: Project, name: str, attempts: list[int]) -> RunDir:
    """Wait for the run's end; all is done, after so many attempts."""
    project.wait_for_state(name, "evaluate", "done", 120)
    run = project.folder(name)
    assert project.states(name) == ["done"] * 4
    assert [len(run.attempts(stage)) for stage in STAGES] == attempts
    return run


def test_gpu_memory_is_mended_in_the_same_job(project: Project) -> None:
    project.order("gpu", "sft", ONCE.format(OUT_OF_GPU_MEMORY))
    project.run("gpu")
    run = finish(project, "gpu", [1, 2, 1, 1])
    assert run.read_resolved()[0].own("sft").micro_batch_size == 8
    assert len({str(each["job"]) for each in run.attempts("sft")}) == 1
    told = project.call("status", "gpu")
    assert "sft after attempt 1 (GPU memory): sft.micro_batch_size 16 -> 8" in told
    [remedy] = project.stages("gpu")["sft"]["remedies"]
    assert remedy["evidence"].startswith("torch.OutOfMemoryError: CUDA out of memory")
    assert "remedy" in [event["event"] for event in run.events()]


def test_more_memory_comes_with_a_new_job_that_the_dependents_wait_for(project: Project) -> None:
    project.order("memory", "sft", ONCE.format("raise MemoryError"))
    project.run("memory")
    before = project.jobs("memory")
    run = finish(project, "memory", [1, 2, 1, 1])
    after = project.jobs("memory")
    assert {stage for stage in STAGES if before[stage] != after[stage]} == {"sft"}
    assert "--mem=5G" in run.script("sft").read_text(), "3G and half as much again"
    assert project.slurm.state(before["sft"]) == "FAILED"
    again = project.run("memory")
    assert again.count("skip") == 4


@pytest.mark.long
def test_the_kernel_kills_for_memory_and_the_stage_comes_back_with_more(project: Project) -> None:
    if not project.slurm.cluster.cgroups:
        pytest.skip("no cgroup v1 here: jobs of the test Slurm may use any memory")
    project.order("killed", "sft", ONCE.format("bytearray(1_000_000_000)"))
    project.run("killed", "resources.sft.memory=300M")
    run = finish(project, "killed", [1, 2, 1, 1])
    [remedy] = run.remedies("sft")
    assert (remedy.failure, remedy.before, remedy.after) == ("memory", "300M", "450M")


@pytest.mark.long
def test_a_bad_node_is_left_out(project: Project) -> None:
    project.order("node", "sft", ONCE.format("raise OSError(5, 'Input/output error')"))
    project.run("node")
    run = finish(project, "node", [1, 2, 1, 1])
    [remedy] = run.remedies("sft")
    assert remedy.after == [run.remedies("sft")[0].after[0]] and remedy.after[0] in project.slurm.cluster.names
    assert f"--exclude={remedy.after[0]}" in run.script("sft").read_text()
    assert run.state("sft")["node"] not in remedy.after


def test_the_network_gets_one_retry_with_debug_settings(project: Project) -> None:
    fault = "import os, torch.distributed as d\nif not os.environ.get('TORCH_DISTRIBUTED_DEBUG'):\n"
    project.order("network", "sft", fault + "    raise d.DistBackendError('NCCL error: remote process exited')")
    project.run("network")
    finish(project, "network", [1, 2, 1, 1])
    project.order("broken", "sft", "import torch.distributed as d\nraise d.DistBackendError('NCCL error')")
    project.run("broken")
    project.wait_for_state("broken", "sft", "failed")
    assert len(project.folder("broken").attempts("sft")) == 2
    project.call("cancel", "broken")


def test_mistakes_and_recipes_that_say_no_stop_at_once(project: Project) -> None:
    project.order("mistake", "sft", "raise ValueError('mine')")
    project.run("mistake")
    project.wait_for_state("mistake", "sft", "failed")
    project.order("no", "sft", OUT_OF_GPU_MEMORY)
    project.run("no", "resources.sft.remedies=0")
    project.wait_for_state("no", "sft", "failed")
    for name in ("mistake", "no"):
        assert len(project.folder(name).attempts("sft")) == 1 and not project.folder(name).remedies("sft")
        project.call("cancel", name)


@pytest.mark.long
def test_a_change_that_does_not_help_ends_in_a_clear_failure(project: Project) -> None:
    project.order("hopeless", "sft", OUT_OF_GPU_MEMORY)
    project.run("hopeless")
    failed = project.wait_for_state("hopeless", "sft", "failed")
    assert [each["after"] for each in failed["remedies"]] == [8, 4, 2]
    assert len(project.folder("hopeless").attempts("sft")) == 4
    assert "OutOfMemoryError" in failed["reason"]
    assert project.stages("hopeless")["grpo"]["state"] == "blocked"
    project.call("cancel", "hopeless")


@pytest.mark.long
def test_without_slurm_only_what_helps_here_is_tried(tmp_path: Path, slurm: Slurm) -> None:
    project = Project(tmp_path / "project", slurm)
    project.order("smoke", "sft", ONCE.format(OUT_OF_GPU_MEMORY))
    project.call("run", "smoke", "--via", "local")
    assert len(project.folder("smoke").attempts("sft")) == 2
    project.order("memory", "sft", "raise MemoryError")
    told = project.call("run", "smoke", "--run-name", "memory", "--via", "local", code=1)
    assert "MemoryError" in told and not project.folder("memory").remedies("sft")
