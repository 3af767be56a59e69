"""The whole DAG on a real Slurm, from a project folder whose name breaks every unquoted use of it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Slurm

from pipeline.load import load_recipe
from pipeline.submit.render import RENDERED

HOME = Path(__file__).parent.parent
STAGES = ["preprocess", "sft", "grpo", "evaluate"]

pytestmark = [pytest.mark.slurm, pytest.mark.training]


class Project:
    """A copy of the project and the command line in it."""

    def __init__(self, home: Path, slurm: Slurm) -> None:
        self.home, self.slurm = home, slurm

    def call(self, *words: str, code: int = 0) -> str:
        done = self.slurm.run(".venv/bin/python", "-m", "pipeline", *words, cwd=self.home)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def stages(self, run: str) -> dict[str, dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.call("status", run, "--json"))["stages"]
        return {each["stage"]: each for each in found}

    def jobs(self, run: str) -> dict[str, str]:
        return {name: each["job"] for name, each in self.stages(run).items() if each["job"]}

    def logs(self, run: str) -> str:
        return "\n".join(path.read_text() for path in sorted((self.home / "logs" / run).glob("*/attempt-*/rank0.out")))


def copy_project(target: Path) -> Path:
    """The files that git knows or would add, and the environment of this very Python."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=HOME,
        capture_output=True,
        check=True,
    )
    for name in listed.stdout.decode().split("\0"):
        if name and (HOME / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(HOME / name, target / name)
    (target / ".venv").symlink_to(sys.prefix)
    return target


@pytest.fixture(scope="module")
def project(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    home = tmp_path_factory.mktemp("slurm") / "a 'quoted\" $folder"
    yield Project(copy_project(home), slurm)


@pytest.fixture(scope="module")
def finished(project: Project) -> dict[str, str]:
    """The smoke run through --via slurm, watched to its end; job ids by stage."""
    told = project.call("run", "smoke", "--via", "slurm")
    assert "submitted evaluate: job" in told
    jobs = project.jobs("smoke")
    assert list(jobs) == STAGES
    assert project.slurm.field(jobs["grpo"], "Dependency").startswith(f"afterok:{jobs['sft']}")
    assert project.slurm.field(jobs["sft"], "Dependency").startswith(f"afterok:{jobs['preprocess']}")
    again = project.call("run", "smoke", "--via", "slurm")
    assert "at work already" in again
    assert project.jobs("smoke") == jobs
    assert project.slurm.wait(*jobs.values(), seconds=240) == ["COMPLETED"] * 4, project.logs("smoke")
    return jobs


def test_the_dag_runs_in_order_on_slurm(project: Project, finished: dict[str, str]) -> None:
    started = [project.slurm.field(finished[stage], "StartTime") for stage in STAGES]
    assert started == sorted(started)
    states = project.stages("smoke")
    assert {each["state"] for each in states.values()} == {"done"}
    assert {each["attempt"] for each in states.values()} == {1}
    comparison = json.loads((project.home / "evaluation_results/smoke/comparison.json").read_text())
    assert list(comparison["models"]) == ["base", "sft", "grpo"]
    assert comparison["models"]["grpo"]["rows"] == 40
    outputs = sorted((project.home / "logs").glob("sft_smoke_*.out"))
    assert outputs and "attempt 1" in outputs[0].read_text()


def test_a_second_run_submits_nothing(project: Project, finished: dict[str, str]) -> None:
    told = project.call("run", "smoke", "--via", "slurm")
    assert "submitted" not in told and told.count("skip") == 4 and "always yes" in told
    assert project.jobs("smoke") == finished


def test_a_changed_setting_is_refused_without_replace(project: Project, finished: dict[str, str]) -> None:
    told = project.call("run", "smoke", "evaluate.max_new_tokens=8", "--via", "slurm", code=2)
    assert "--replace" in told and "--run-name" in told


def test_evaluate_slurm_takes_a_model_folder_and_a_name(project: Project, finished: dict[str, str]) -> None:
    done = project.slurm.run(
        "sbatch",
        "--parsable",
        "--gres=none",
        "slurm/evaluate.slurm",
        "./models/smoke_sft_model",
        "again",
        cwd=project.home,
    )
    assert done.returncode == 0, done.stderr
    job = done.stdout.strip()
    output = project.home / "logs" / f"evaluate_{job}.out"
    assert project.slurm.wait(job) == ["COMPLETED"], output.read_text()
    comparison = json.loads((project.home / "evaluation_results/smoke/comparison.json").read_text())
    assert comparison["models"]["again"]["f1"] == comparison["models"]["sft"]["f1"]
    assert list(comparison["models"]) == ["base", "sft", "grpo", "again"]


def test_a_stage_script_alone_works_and_says_what_is_missing(project: Project) -> None:
    submitted = {
        stage: project.slurm.run("sbatch", "--parsable", f"slurm/{stage}_tiny.slurm", cwd=project.home).stdout.strip()
        for stage in ("sft",)
    }
    assert project.slurm.wait(*submitted.values()) == ["FAILED"]
    output = (project.home / "logs" / f"sft_tiny_{submitted['sft']}.out").read_text()
    assert "sft needs preprocess, which is not done" in output
    assert project.slurm.field(submitted["sft"], "ExitCode") == "3:0"
    assert project.stages("tiny")["sft"]["state"] == "failed"


def test_the_dependents_of_a_failed_stage_never_start(project: Project, finished: dict[str, str]) -> None:
    project.call("run", "smoke", "sft.lr_scheduler_type=nonsense", "--run-name", "broken", "--via", "slurm")
    jobs = project.jobs("broken")
    assert project.slurm.wait(jobs["preprocess"], jobs["sft"], seconds=120) == ["COMPLETED", "FAILED"]
    end = time.monotonic() + 30
    while project.slurm.field(jobs["grpo"], "Reason") != "DependencyNeverSatisfied" and time.monotonic() < end:
        time.sleep(0.3)
    states = project.stages("broken")
    assert states["sft"]["state"] == "failed" and "nonsense" in states["sft"]["reason"]
    for stage in ("grpo", "evaluate"):
        assert states[stage]["state"] == "blocked"
        assert "sft failed" in states[stage]["reason"]
        assert states[stage]["attempt"] is None
    told = project.call("cancel", "broken")
    assert jobs["grpo"] in told and jobs["evaluate"] in told
    assert project.slurm.wait(jobs["grpo"], jobs["evaluate"]) == ["CANCELLED", "CANCELLED"]
    assert project.slurm.run("squeue", "-h", "-t", "PENDING,RUNNING").stdout == ""
    assert project.stages("broken")["grpo"]["state"] == "cancelled"


def test_the_dag_runs_through_submitit(project: Project) -> None:
    project.call("run", "smoke", "--run-name", "through-submitit", "--via", "submitit")
    jobs = project.jobs("through-submitit")
    assert project.slurm.field(jobs["grpo"], "Dependency").startswith(f"afterok:{jobs['sft']}")
    assert project.slurm.wait(*jobs.values(), seconds=240) == ["COMPLETED"] * 4, project.logs("through-submitit")
    assert {each["state"] for each in project.stages("through-submitit").values()} == {"done"}


def test_every_checked_in_script_is_taken(project: Project) -> None:
    scripts = sorted((project.home / "slurm").glob("*.slurm"))
    assert len(scripts) == 1 + sum(len(load_recipe(HOME / "configs" / f"{name}.yaml").stages) for name in RENDERED)
    for script in scripts:
        arguments = ["m", "n"] if script.name == "evaluate.slurm" else []
        done = project.slurm.run("sbatch", "--test-only", str(script), *arguments, cwd=project.home)
        assert done.returncode == 0, f"{script.name}: {done.stderr}"


def test_a_refused_stage_takes_the_others_back(project: Project) -> None:
    told = project.call("run", "smoke", "resources.grpo.memory=99T", "--run-name", "too-big", "--via", "slurm", code=2)
    assert "sbatch refused the job" in told
    assert project.slurm.run("squeue", "-h", "--states=PENDING,RUNNING").stdout == ""
    assert project.stages("too-big")["preprocess"]["state"] == "cancelled"
