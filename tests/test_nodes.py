"""SFT over the two nodes of a real Slurm: one torchrun a node, and what happens when one of them breaks."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster
from conftest import Slurm
from test_slurm_dag import Project, copy_project
from test_slurm_stop import until, wait_for_steps

from pipeline.load import build_recipe
from pipeline.records import file_hash
from pipeline.run import HOME, RunDir
from pipeline.settings import dump_yaml, read_yaml

pytestmark = [pytest.mark.slurm, pytest.mark.training]

STEPS = 300


@pytest.fixture(scope="module")
def project(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """A copy of the project with a recipe whose sft stage has one process on each of two nodes."""
    home = copy_project(tmp_path_factory.mktemp("nodes") / "project")
    tree = read_yaml(HOME / "configs" / "smoke.yaml") | {"stages": ["preprocess", "sft"]}
    for name in ("grpo", "evaluate"):
        tree.pop(name)
        tree["resources"].pop(name)
    tree["data"]["rows"].pop("grpo")
    tree["sft"] |= {"max_steps": STEPS, "logging_steps": 20, "checkpoint": {"every_steps": 50, "keep": 2}}
    tree["resources"]["sft"] |= {"launcher": "torchrun", "nodes": 2, "processes": 1}
    build_recipe("pair", tree, "pair.yaml")
    (home / "configs" / "pair.yaml").write_text(dump_yaml(tree), encoding="utf-8")
    yield Project(home, slurm)


@pytest.fixture(scope="module")
def weights(project: Project) -> str:
    """The hash of the weights of two processes on one node."""
    one = ["resources.sft.nodes=1", "resources.sft.processes=2"]
    project.call("run", "pair", *one, "--run-name", "one-node", "--via", "slurm")
    assert project.slurm.wait(project.jobs("one-node")["sft"], seconds=400) == ["COMPLETED"], project.logs("one-node")
    return file_hash(RunDir(project.home, "one-node").model("sft") / "model.safetensors")


def ranks(run: RunDir) -> dict[int, int]:
    """The processes that train a run's model: rank -> pid."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode().split("\0")
            variables = (folder / "environ").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        rank = next((line.partition("=")[2] for line in variables if line.startswith("RANK=")), "")
        if "pipeline.stages.sft" in words and str(run.logs) in words and rank:
            found[int(rank)] = int(folder.name)
    return found


def test_two_nodes_train_as_one_does(project: Project, weights: str, slurm: Slurm) -> None:
    project.call("run", "pair", "--run-name", "two", "--via", "slurm")
    run, job = RunDir(project.home, "two"), project.jobs("two")["sft"]
    wait_for_steps(run)
    assert slurm.field(job, "NumNodes") == "2"
    assert sorted(ranks(run)) == [0, 1]

    assert slurm.run("scancel", "--signal=TERM", "--full", job).returncode == 0
    attempt = wait_for_steps(run, 1)
    assert "going on from the checkpoint of step" in run.attempt_log("sft", attempt).read_text()

    os.kill(ranks(run)[1], signal.SIGKILL)
    killed = time.monotonic()
    until("the other process ends too", lambda: not ranks(run), 60)
    assert time.monotonic() - killed < 60
    attempt = wait_for_steps(run, attempt)
    [remedy] = run.remedies("sft")
    assert remedy.failure == "network" and remedy.after is True
    assert slurm.wait(job, seconds=400) == ["COMPLETED"], project.logs("two")
    assert {each["job"] for each in run.attempts("sft")} == {job}
    assert file_hash(run.model("sft") / "model.safetensors") == weights


@pytest.fixture
def three(slurm_root: Path) -> Iterator[Slurm]:
    """A Slurm of three nodes, so that one may be dead."""
    cluster = Cluster(slurm_root / "three", nodes=3)
    cluster.up()
    yield Slurm(cluster)
    cluster.down()


@pytest.mark.long
def test_a_dead_node_ends_the_other_and_the_stage_goes_on_elsewhere(
    project: Project, weights: str, three: Slurm
) -> None:
    project = Project(project.home, three)
    project.call("run", "pair", "--run-name", "dead", "--via", "slurm")
    run = RunDir(project.home, "dead")
    wait_for_steps(run)
    daemon, _ = three.cluster.processes[three.cluster.names[1]]
    victims = [daemon, *lineage(ranks(run)[1])]
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    killed = time.monotonic()
    until("the other process ends too", lambda: not ranks(run), 60)
    assert time.monotonic() - killed < 60
    until("the stage is done", lambda: run.done("sft"), 400)
    assert file_hash(run.model("sft") / "model.safetensors") == weights


def lineage(pid: int) -> list[int]:
    """A process and those above it, up to the step's slurmstepd."""
    found = [pid]
    while not Path(f"/proc/{found[-1]}/cmdline").read_bytes().startswith(b"slurmstepd"):
        found.append(int(Path(f"/proc/{found[-1]}/stat").read_text().rpartition(")")[2].split()[1]))
    return found


def test_several_nodes_need_slurm(project: Project) -> None:
    told = project.call("run", "pair", "--run-name", "here", "--via", "local", code=2)
    assert "a stage over several nodes needs Slurm: 2" in told
