"""A training job on a real Slurm, stopped in every way there is, keeps its number and ends with the same weights."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import Slurm
from test_slurm_dag import Project, copy_project

from pipeline.load import build_recipe
from pipeline.records import file_hash
from pipeline.run import HOME, RunDir
from pipeline.settings import dump_yaml, read_yaml

pytestmark = [pytest.mark.slurm, pytest.mark.training]

STEPS = 1500
"""More than a minute of training with one thread: longer than the time limit."""


@pytest.fixture(scope="module")
def project(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """A copy of the project with a recipe whose sft stage takes a while."""
    home = copy_project(tmp_path_factory.mktemp("stop") / "a 'quoted\" $folder")
    tree = read_yaml(HOME / "configs" / "smoke.yaml") | {"stages": ["preprocess", "sft", "evaluate"]}
    tree.pop("grpo")
    tree["data"]["rows"].pop("grpo")
    tree["resources"].pop("grpo")
    tree["resources"]["sft"]["time"] = "00:01:00"
    tree["sft"] |= {"max_steps": STEPS, "logging_steps": 20, "checkpoint": {"every_steps": 100, "keep": 2}}
    build_recipe("long", tree, "long.yaml")
    (home / "configs" / "long.yaml").write_text(dump_yaml(tree), encoding="utf-8")
    yield Project(home, slurm)


@pytest.fixture(scope="module")
def weights(project: Project) -> str:
    """The hash of the weights that training without a break gives."""
    project.call("run", "long", "--run-name", "undisturbed", "--via", "local", "--until", "sft")
    return file_hash(RunDir(project.home, "undisturbed").model("sft") / "model.safetensors")


def until(what: str, test: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not test():
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        time.sleep(0.1)


def trains(run: RunDir, attempt: int) -> Callable[[], bool]:
    """Whether this attempt of sft has logged a step."""

    def test() -> bool:
        log = run.attempt_log("sft", attempt)
        return log.exists() and bool(re.search(r"^step \d+/", log.read_text(), re.MULTILINE))

    return test


def test_a_disturbed_job_ends_with_the_undisturbed_weights(project: Project, weights: str, slurm: Slurm) -> None:
    run = RunDir(project.home, "disturbed")
    env: dict[str, Any] = {"SBATCH_PARTITION": "preempt"}
    project.slurm.run(
        ".venv/bin/python", "-m", "pipeline", "run", "long", "--run-name", "disturbed", "--via", "slurm",
        cwd=project.home, **env,
    )  # fmt: skip
    jobs = project.jobs("disturbed")
    job, dependency = jobs["sft"], slurm.field(jobs["evaluate"], "Dependency")

    until("sft trains", trains(run, 1))
    assert slurm.run("scancel", "--signal=TERM", "--full", job).returncode == 0
    until("sft trains again", trains(run, 2))
    assert run.state("sft")["job"] == job

    assert slurm.run("scontrol", "requeue", job).returncode == 0
    until("sft trains a third time", trains(run, 3))

    urgent = slurm.submit(
        "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1", "--partition=debug", cwd=project.home
    )
    assert slurm.wait(urgent) == ["COMPLETED"]
    until("sft trains a fourth time", trains(run, 4))
    assert slurm.field(jobs["evaluate"], "Dependency") == dependency
    assert slurm.field(job, "Restarts") == "3"

    assert slurm.wait(job, jobs["evaluate"], seconds=300) == ["COMPLETED", "COMPLETED"], project.logs("disturbed")
    assert len(run.attempts("sft")) > 4, "the time limit was hit too"
    progress = [each["progress"] for each in run.attempts("sft")]
    assert progress == sorted(set(progress)), "every attempt begins further on"
    assert {each["job"] for each in run.attempts("sft")} == {job}
    assert len(run.attempts("evaluate")) == 1
    assert file_hash(run.model("sft") / "model.safetensors") == weights
    assert [line["step"] for line in run.read_metrics("sft") if "loss" in line] == list(range(20, STEPS + 1, 20))
    assert not run.checkpoints("sft").exists()
    assert run.latest_log("sft").resolve().parent.name == f"attempt-{len(run.attempts('sft'))}"
