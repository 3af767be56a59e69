"""Submission as a transaction, on a real Slurm: the launcher is refused, killed and interrupted at every step."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Slurm
from launching import STAGES, Project, faulty_commands

pytestmark = pytest.mark.slurm

RELEASE = "scontrol-2"
"""The launcher's second call of scontrol; the first asks whether Slurm is there."""


@pytest.fixture(scope="module")
def project(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    yield Project(tmp_path_factory.mktemp("launch") / "a 'quoted\" $folder", slurm)


def finish(project: Project, name: str) -> None:
    """All four stages end well, each having run once."""
    jobs = project.jobs(name)
    assert list(jobs) == STAGES
    assert project.slurm.wait(*jobs.values()) == ["COMPLETED"] * 4, project.call("status", name)
    states = project.stages(name)
    assert {each["state"] for each in states.values()} == {"done"}
    assert {each["attempt"] for each in states.values()} == {1}
    assert project.queued(name) == []


def test_a_run_leaves_a_record_before_each_job_and_a_comment_on_it(project: Project) -> None:
    project.order("plain", "preprocess", "import time; time.sleep(2)")
    project.run("plain")
    jobs = project.jobs("plain")
    events = [(each["event"], each["stage"]) for each in project.folder("plain").events()]
    wanted = [(event, stage) for stage in STAGES for event in ("submitting", "submitted")]
    assert [each for each in events if each[0] in ("submitting", "submitted", "released")] == [
        *wanted,
        ("released", ""),
    ]
    for stage, job in jobs.items():
        fingerprint = project.folder("plain").submission(stage)["fingerprint"]
        assert project.slurm.field(job, "Comment").startswith(f"plain/{stage}/{fingerprint}/")
    finish(project, "plain")


@pytest.mark.parametrize("call", [1, 3])
def test_a_refused_sbatch_leaves_no_job(project: Project, tmp_path: Path, call: int) -> None:
    name = f"refused-{call}"
    told = project.run(name, code=2, env=faulty_commands(project.slurm, tmp_path / "bin", f"sbatch-{call}-refused"))
    assert "sbatch refused the job" in told and "no such luck" in told
    assert project.queued(name) == []
    assert not any((project.folder(name).stage(stage) / "attempt-1").exists() for stage in STAGES)
    assert project.states(name)[: call - 1] == ["cancelled"] * (call - 1)
    project.run(name)
    finish(project, name)


KILLED = [f"sbatch-{call}-{when}" for call in (1, 4) for when in ("instead", "before", "after")]


@pytest.mark.parametrize(
    "fault",
    [
        *(pytest.param(each, marks=pytest.mark.long) for each in (KILLED[0], *KILLED[2:-1])),
        KILLED[1],
        KILLED[-1],
        f"{RELEASE}-instead",
    ],
)
def test_a_launcher_killed_before_the_release_leaves_nothing_running(
    project: Project, tmp_path: Path, fault: str
) -> None:
    """`before`: sbatch lives on without its launcher. `run` takes over what there is and submits the rest."""
    name = f"killed-{fault}"
    done = project.start(
        "run",
        "smoke",
        "--run-name",
        name,
        "--via",
        "slurm",
        env=faulty_commands(project.slurm, tmp_path / "bin", fault),
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    left = wait_for_orphans(project, name, fault)
    assert all(project.slurm.state(job) == "PENDING" for job in left)
    states = project.stages(name)
    assert {each["job"] for each in states.values() if each["job"]} == set(left)
    assert {each["state"] for each in states.values()} <= {"queued", "waiting", "not started", "not submitted"}
    project.run(name)
    assert set(left) <= set(project.jobs(name).values())
    finish(project, name)


def wait_for_orphans(project: Project, name: str, fault: str) -> list[str]:
    """The jobs in the queue, once the sbatch that lost its launcher is through."""
    call, when = int(fault.split("-")[1]), fault.split("-")[2]
    wanted = 4 if fault.startswith("scontrol") else call - (when == "instead")
    end = time.monotonic() + 10
    while len(project.queued(name)) < wanted and time.monotonic() < end:
        time.sleep(0.1)
    assert len(project.queued(name)) == wanted
    return project.queued(name)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_launcher_killed_at_the_release_has_submitted_all(project: Project, tmp_path: Path, when: str) -> None:
    name = f"killed-release-{when}"
    project.start(
        "run", "smoke", "--run-name", name, "--via", "slurm",
        env=faulty_commands(project.slurm, tmp_path / "bin", f"{RELEASE}-{when}"),
    )  # fmt: skip
    finish(project, name)
    assert project.folder(name).transaction()["state"] == "released"


def test_what_a_killed_launcher_left_can_be_cancelled(project: Project, tmp_path: Path) -> None:
    fault = faulty_commands(project.slurm, tmp_path / "bin", "sbatch-3-after")
    project.start("run", "smoke", "--run-name", "dropped", "--via", "slurm", env=fault)
    assert len(project.queued("dropped")) == 3
    assert "cancelled: preprocess" in project.call("cancel", "dropped")
    assert project.queued("dropped") == []
    assert project.states("dropped") == ["cancelled"] * 3 + ["not started"]


def test_jobs_are_found_where_a_site_replaces_their_comments(project: Project, tmp_path: Path) -> None:
    fault = faulty_commands(project.slurm, tmp_path / "bin", "sbatch-2-after")
    project.start("run", "smoke", "--run-name", "renamed", "--via", "slurm", env=fault)
    before = project.queued("renamed")
    for job in before:
        assert project.slurm.run("scontrol", "update", f"JobId={job}", "Comment=charged to nobody").returncode == 0
    assert sorted(project.jobs("renamed").values()) == sorted(before)
    project.run("renamed")
    assert set(before) <= set(project.jobs("renamed").values())
    finish(project, "renamed")


def test_other_settings_replace_what_a_killed_launcher_left(project: Project, tmp_path: Path) -> None:
    fault = faulty_commands(project.slurm, tmp_path / "bin", "sbatch-3-after")
    project.start("run", "smoke", "--run-name", "changed", "--via", "slurm", env=fault)
    before = project.queued("changed")
    project.run("changed", "seed=7")
    assert not set(before) & set(project.jobs("changed").values())
    finish(project, "changed")


def test_a_run_of_the_same_name_in_another_place_is_left_alone(
    project: Project, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    other = Project(tmp_path_factory.mktemp("other") / "home", project.slurm)
    for each in (project, other):
        each.order("twin", "preprocess", "import time; time.sleep(600)")
        each.run("twin")
    assert len(project.queued("twin")) == 8
    project.call("cancel", "twin")
    assert set(project.queued("twin")) == set(other.jobs("twin").values())
    other.call("cancel", "twin")
    assert project.queued("twin") == []


@pytest.mark.long
def test_a_launcher_killed_at_any_moment_loses_nothing(project: Project) -> None:
    """Moments spread over the whole submission; whatever is left, `run` ends with four stages done once."""
    for number in range(6):
        name = f"any-{number}"
        command = [".venv/bin/python", "-m", "pipeline", "run", "smoke", "--run-name", name, "--via", "slurm"]
        child = subprocess.Popen(
            command, cwd=project.home, env=project.slurm.env,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        begun = time.monotonic()
        while not project.folder(name).transaction() and time.monotonic() < begun + 20:
            time.sleep(0.005)
        time.sleep(0.06 * number)
        child.kill()
        child.wait()
        project.run(name)
        finish(project, name)
