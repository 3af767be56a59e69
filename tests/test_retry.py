"""Failed stages again, gaps filled, nothing done twice: on a real Slurm."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Slurm
from launching import STAGES, Project, faulty_commands
from processes import wait_until

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module")
def project(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    yield Project(tmp_path_factory.mktemp("retry") / "a 'quoted\" $folder", slurm)


def break_stage(project: Project, name: str, stage: str = "sft") -> dict[str, str]:
    """A run in which a stage has failed and the later ones wait; its jobs."""
    project.order(name, stage, "raise ValueError('not this time')")
    project.run(name)
    project.wait_for_state(name, stage, "failed")
    last = STAGES[-1]
    project.wait_for_state(name, last, "blocked")
    return project.jobs(name)


def finish(project: Project, name: str, attempts: list[int]) -> None:
    assert project.slurm.wait(*project.jobs(name).values(), seconds=60) == ["COMPLETED"] * 4
    stages = project.stages(name)
    assert [each["state"] for each in stages.values()] == ["done"] * 4
    assert [each["attempt"] for each in stages.values()] == attempts
    assert project.queued(name) == []


@pytest.mark.parametrize("words", [[], pytest.param(["sft"], marks=pytest.mark.long)])
def test_retry_mends_a_failed_stage_and_the_waiting_keep_their_jobs(project: Project, words: list[str]) -> None:
    name = f"mended-{len(words)}"
    before = break_stage(project, name)
    project.order(name, "sft", "")
    told = project.call("retry", name, *words)
    assert f"kept grpo: job {before['grpo']}" in told and f"kept evaluate: job {before['evaluate']}" in told
    after = project.jobs(name)
    assert after["sft"] != before["sft"] and {**after, "sft": ""} == {**before, "sft": ""}
    finish(project, name, [1, 2, 1, 1])


def test_retry_runs_the_code_of_the_run_even_when_the_project_has_changed(project: Project) -> None:
    before = break_stage(project, "old-code")
    project.order("old-code", "sft", "")
    stage = project.home / "pipeline" / "stages" / "sft.py"
    text = stage.read_text()
    try:
        stage.write_text("raise SystemExit('new code')\n")
        project.call("retry", "old-code")
        finish(project, "old-code", [1, 2, 1, 1])
    finally:
        stage.write_text(text)
    assert project.jobs("old-code")["grpo"] == before["grpo"]


def test_run_mends_as_retry_does(project: Project) -> None:
    before = break_stage(project, "by-run")
    project.order("by-run", "sft", "")
    told = project.run("by-run")
    assert "skip  preprocess: done" in told and f"kept grpo: job {before['grpo']}" in told
    finish(project, "by-run", [1, 2, 1, 1])


def test_run_with_other_resources_replaces_the_waiting_jobs(project: Project) -> None:
    before = break_stage(project, "bigger")
    project.order("bigger", "sft", "")
    project.run("bigger", "resources.sft.memory=4G", "resources.grpo.memory=4G")
    after = project.jobs("bigger")
    assert after["grpo"] != before["grpo"] and after["evaluate"] == before["evaluate"]
    finish(project, "bigger", [1, 2, 1, 1])


def test_a_job_that_somebody_cancelled_is_the_gap_that_run_fills(project: Project) -> None:
    project.order("gap", "preprocess", "import time; time.sleep(600)")
    project.run("gap")
    before = project.jobs("gap")
    project.slurm.run("scancel", before["grpo"])
    project.wait_for_state("gap", "grpo", "cancelled")
    told = project.run("gap")
    after = project.jobs("gap")
    assert {stage for stage in STAGES if after[stage] != before[stage]} == {"grpo"}
    assert f"submitted grpo: job {after['grpo']}" in told and told.count("kept") == 3
    assert project.slurm.field(after["grpo"], "Dependency").startswith(f"afterok:{after['sft']}")
    assert project.slurm.field(after["evaluate"], "Dependency").startswith(f"afterok:{after['grpo']}")
    again = project.run("gap")
    assert "at work already" in again and project.jobs("gap") == after
    project.call("cancel", "gap")
    wait_until("no job is left", lambda: not project.queued("gap"))  # on a busy machine one is COMPLETING for a while


def test_a_run_at_work_is_not_disturbed_by_other_settings(project: Project) -> None:
    project.order("busy", "preprocess", "import time; time.sleep(600)")
    project.run("busy")
    project.slurm.run("scancel", project.jobs("busy")["evaluate"])
    project.wait_for_state("busy", "evaluate", "cancelled")
    resolved = project.folder("busy").resolved.read_text()
    told = project.run("busy", "seed=7", code=2)
    assert "at work with other settings" in told and "cancel" in told and "--run-name" in told
    assert project.folder("busy").resolved.read_text() == resolved
    project.call("cancel", "busy")


def test_only_what_changed_is_submitted_again(project: Project) -> None:
    project.run("again")
    finish(project, "again", [1, 1, 1, 1])
    before = project.jobs("again")
    assert project.run("again").count("skip") == 4
    told = project.run("again", "evaluate.max_new_tokens=8", "--replace")
    assert told.count("skip") == 3 and "run   evaluate: settings, data or code changed" in told
    after = project.jobs("again")
    assert {stage for stage in STAGES if after[stage] != before[stage]} == {"evaluate"}
    finish(project, "again", [1, 1, 1, 2])


def test_a_damaged_output_is_made_again(project: Project) -> None:
    project.run("damaged")
    finish(project, "damaged", [1, 1, 1, 1])
    (project.folder("damaged").model("sft") / "made").write_text("something else")
    told = project.run("damaged")
    assert "run   sft:" in told and "skip  preprocess" in told
    finish(project, "damaged", [1, 2, 1, 1])


def test_what_cannot_be_retried_is_said(project: Project) -> None:
    break_stage(project, "odd")
    assert "did you mean 'sft'?" in project.call("retry", "odd", "sftt", code=2)
    assert "this stage has not failed" in project.call("retry", "odd", "preprocess", code=2)
    project.slurm.run("scancel", project.jobs("odd")["evaluate"])
    project.wait_for_state("odd", "evaluate", "cancelled")
    assert "evaluate needs sft, which failed too" in project.call("retry", "odd", "evaluate", code=2)
    project.order("odd", "sft", "")
    found = project.json("retry", "odd")
    assert set(found["jobs"]) == {"sft", "grpo", "evaluate"}
    finish(project, "odd", [1, 2, 1, 1])
    assert "nothing to retry" in project.call("retry", "odd")


def test_a_retry_that_is_killed_is_taken_up(project: Project, tmp_path: Path) -> None:
    before = break_stage(project, "killed")
    project.order("killed", "sft", "")
    done = project.start("retry", "killed", env=faulty_commands(project.slurm, tmp_path / "bin", "sbatch-1-after"))
    assert done.returncode == -signal.SIGKILL
    held = project.jobs("killed")["sft"]
    assert held != before["sft"] and project.slurm.field(held, "Reason") == "JobHeldUser"
    project.run("killed")
    assert project.jobs("killed") == {**before, "sft": held}
    finish(project, "killed", [1, 2, 1, 1])


def test_the_dependents_that_slurm_cancels_itself_are_submitted_again(project: Project) -> None:
    site = project.home / "configs" / "cluster.yaml"
    site.write_text("kill_on_invalid_dep: true\n")
    try:
        project.order("kill", "sft", "raise ValueError('not this time')")
        project.run("kill")
        project.wait_for_state("kill", "evaluate", "cancelled")
        project.order("kill", "sft", "")
        project.call("retry", "kill")
        finish(project, "kill", [1, 2, 1, 1])
    finally:
        site.unlink()


def test_a_job_whose_needs_were_forgotten_ends_in_seconds(project: Project) -> None:
    """A dependency on a job that Slurm does not know any more counts as met: the job body looks for itself."""
    project.order("forgotten", "preprocess", "raise ValueError('not this time')")
    project.run("forgotten")
    jobs = project.jobs("forgotten")
    project.slurm.wait(jobs["preprocess"], seconds=60)
    assert project.slurm.run("scontrol", "update", f"JobId={jobs['sft']}", "Dependency=").returncode == 0
    assert project.slurm.wait(jobs["sft"], seconds=60) == ["FAILED"]
    assert project.slurm.field(jobs["sft"], "ExitCode") == "3:0"
    wait_until("the reason is told", lambda: "needs preprocess" in project.stages("forgotten")["sft"]["reason"])
    project.call("cancel", "forgotten")


LATE = """
import signal, threading
told = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: told.set())
told.wait(600)
"""


@pytest.mark.parametrize("verb", ["run", pytest.param("retry", marks=pytest.mark.long)])
def test_a_stage_that_is_done_but_that_slurm_takes_for_failed_holds_nothing_back(project: Project, verb: str) -> None:
    """It ends well after its time was up, before Slurm kills it: `afterok` is never satisfied."""
    name = f"late-{verb}"
    project.order(name, "preprocess", LATE)
    project.run(name)
    project.wait_for_state(name, "preprocess", "running")
    before = project.jobs(name)
    assert project.slurm.run("scontrol", "update", f"JobId={before['preprocess']}", "EndTime=now+1").returncode == 0
    assert project.slurm.wait(before["preprocess"], seconds=120) == ["TIMEOUT"]
    wait_until("it is told", lambda: "is done for failed" in project.stages(name)["sft"]["reason"])
    assert project.stages(name)["preprocess"]["state"] == "done"
    assert "`retry` submits this one again" in project.call("why", name, "sft")
    if verb == "run":
        project.run(name)
    else:
        project.call("retry", name)
    after = project.jobs(name)
    assert {stage for stage in STAGES if after[stage] != before[stage]} == {"sft"}
    assert project.slurm.wait(after["evaluate"], seconds=120) == ["COMPLETED"]
    assert project.states(name) == ["done"] * 4
