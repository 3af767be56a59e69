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

STEPS = 600
SLOW = """
def slow(step):
    def slowly(*arguments, **named):
        time.sleep(0.15)
        return step(*arguments, **named)
    return slowly


import os, time
if not os.environ.get("SLURM_JOB_NAME", "").endswith("_undisturbed"):
    from transformers import Trainer

    Trainer.training_step = slow(Trainer.training_step)

"""
"""Put into the sft stage: training that can be stopped at leisure, however fast the machine, and mostly waits."""
STEP = re.compile(r"^step \d+/", re.MULTILINE)


@pytest.fixture(scope="module")
def project(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """A copy of the project with a recipe whose sft stage takes a while."""
    home = copy_project(tmp_path_factory.mktemp("stop") / "a 'quoted\" $folder")
    tree = read_yaml(HOME / "configs" / "smoke.yaml") | {"stages": ["preprocess", "sft", "evaluate"]}
    tree.pop("grpo")
    tree["data"]["rows"].pop("grpo")
    tree["resources"].pop("grpo")
    tree["sft"] |= {"max_steps": STEPS, "logging_steps": 20, "checkpoint": {"every_steps": 50, "keep": 2}}
    build_recipe("long", tree, "long.yaml")
    (home / "configs" / "long.yaml").write_text(dump_yaml(tree), encoding="utf-8")
    stage = home / "pipeline" / "stages" / "sft.py"
    code, entry = stage.read_text(), 'if __name__ == "__main__":'
    assert code.count(entry) == 1
    stage.write_text(code.replace(entry, SLOW + entry))
    yield Project(home, slurm)


@pytest.fixture(scope="module")
def weights(project: Project) -> str:
    """The hash of the weights that training without a break gives."""
    project.call("run", "long", "--run-name", "undisturbed", "--via", "slurm", "--until", "sft")
    assert project.slurm.wait(project.jobs("undisturbed")["sft"], seconds=300) == ["COMPLETED"]
    return file_hash(RunDir(project.home, "undisturbed").model("sft") / "model.safetensors")


def until(what: str, test: Callable[[], object], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not test():
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        time.sleep(0.1)


def wait_for_steps(run: RunDir, after: int = 0) -> int:
    """Wait until an attempt of sft later than `after` logs a step; its number."""

    def stepping() -> list[int]:
        logs = {number: run.attempt_log("sft", number) for number in range(after + 1, len(run.attempts("sft")) + 1)}
        return [number for number, log in logs.items() if log.exists() and STEP.search(log.read_text())]

    until("sft trains", stepping)
    return stepping()[-1]


def test_a_disturbed_job_ends_with_the_undisturbed_weights(project: Project, weights: str, slurm: Slurm) -> None:
    run = RunDir(project.home, "disturbed")
    env: dict[str, Any] = {"SBATCH_PARTITION": "preempt"}
    project.slurm.run(
        ".venv/bin/python", "-m", "pipeline", "run", "long", "--run-name", "disturbed", "--via", "slurm",
        cwd=project.home, **env,
    )  # fmt: skip
    jobs = project.jobs("disturbed")
    job, dependency = jobs["sft"], slurm.field(jobs["evaluate"], "Dependency")

    attempt = wait_for_steps(run)
    assert slurm.run("scontrol", "update", f"JobId={job}", "TimeLimit=2").returncode == 0
    output = run.slurm_output / f"sft_disturbed_{job}.out"
    until("Slurm warns of the time limit", lambda: "SIGUSR1: the stage is asked" in output.read_text())
    until("the job is in the queue again", lambda: slurm.state(job) == "PENDING")
    assert slurm.run("scontrol", "update", f"JobId={job}", "TimeLimit=10").returncode == 0

    attempt = wait_for_steps(run, attempt)
    assert slurm.run("scancel", "--signal=TERM", "--full", job).returncode == 0
    attempt = wait_for_steps(run, attempt)
    assert run.state("sft")["job"] == job

    assert slurm.run("scontrol", "requeue", job).returncode == 0
    attempt = wait_for_steps(run, attempt)

    urgent = slurm.submit(
        "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1", "--partition=debug", cwd=project.home
    )
    assert slurm.wait(urgent) == ["COMPLETED"]
    wait_for_steps(run, attempt)
    assert slurm.field(jobs["evaluate"], "Dependency") == dependency

    assert slurm.wait(job, jobs["evaluate"], seconds=300) == ["COMPLETED", "COMPLETED"], project.logs("disturbed")
    assert len(run.attempts("sft")) == 5
    assert slurm.field(job, "Restarts") == "4"
    progress = [each["progress"] for each in run.attempts("sft")]
    assert progress == sorted(set(progress)), "every attempt begins further on"
    assert {each["job"] for each in run.attempts("sft")} == {job}
    assert len(run.attempts("evaluate")) == 1
    assert file_hash(run.model("sft") / "model.safetensors") == weights
    assert [line["step"] for line in run.read_metrics("sft") if "loss" in line] == list(range(20, STEPS + 1, 20))
    assert not run.checkpoints("sft").exists()
    assert run.latest_log("sft").resolve().parent.name == f"attempt-{len(run.attempts('sft'))}"


def begun(project: Project, run: RunDir, *words: str) -> str:
    """The id of the sft job of a new run, which trains."""
    project.call("run", "long", "--run-name", run.name, "--via", "slurm", *words)
    wait_for_steps(run)
    return project.jobs(run.name)["sft"]


def test_a_cancelled_job_does_not_come_back(project: Project, slurm: Slurm) -> None:
    run = RunDir(project.home, "cancelled")
    job = begun(project, run)
    project.call("cancel", "cancelled")
    assert slurm.wait(job) == ["CANCELLED"]
    until("the job body has ended", lambda: run.state("sft")["ended"])
    state = run.state("sft")
    assert state["state"] == "cancelled"
    assert re.fullmatch(r"cancelled by its user; stopped by SIGTERM at step \d+", state["reason"])
    assert slurm.state(job) == "CANCELLED"


def test_a_job_that_must_not_be_requeued_says_so_and_is_gone_on_from(project: Project, slurm: Slurm) -> None:
    (project.home / "configs" / "cluster.yaml").write_text("requeue: false\n")
    run = RunDir(project.home, "once")
    job = begun(project, run, "sft.max_steps=200")
    assert slurm.run("scancel", "--signal=TERM", "--full", job).returncode == 0
    assert slurm.wait(job) == ["FAILED"]
    state = run.state("sft")
    told = re.fullmatch(
        r"stopped by SIGTERM at step (\d+); not requeued: requeueing is not allowed for this job", state["reason"]
    )
    assert told and state["state"] == "interrupted"
    project.call("cancel", "once")
    project.call("run", "long", "sft.max_steps=200", "--run-name", "once", "--via", "slurm")
    assert slurm.wait(project.jobs("once")["sft"]) == ["COMPLETED"]
    assert f"going on from the checkpoint of step {told.group(1)}" in run.latest_log("sft").read_text()
