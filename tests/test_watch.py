"""status, why, logs and cancel as their user meets them: on a real Slurm that answers, is silent, or fails."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Slurm
from launching import Project, faulty_commands
from processes import wait_until

from pipeline.run import RunDir
from pipeline.submit.why import failure, plain_words, tracebacks

slurm_test = pytest.mark.slurm
SLEEP = "print('begun', flush=True); import time; time.sleep(600)"
TWO_RANKS = """\
[rank1]: Traceback (most recent call last):
[rank1]:   File "sft.py", line 3, in <module>
[rank1]:     raise KeyError("inner")
[rank1]: KeyError: 'inner'

[rank1]: During handling of the above exception, another exception occurred:

[rank1]: Traceback (most recent call last):
[rank1]:   File "sft.py", line 5, in <module>
[rank1]: ValueError: outer
[rank0]: Traceback (most recent call last):
[rank0]:   File "sft.py", line 9, in <module>
[rank0]: RuntimeError: Connection closed by peer
Traceback (most recent call last):
  File "run.py", line 1, in <module>
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
============================================================
Root Cause (first observed failure):
[0]:
  time      : 2026-01-01_00:00:00
  rank      : 1 (local_rank: 1)
  exitcode  : 1 (pid: 17)
"""


@pytest.fixture(scope="module")
def project(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    yield Project(tmp_path_factory.mktemp("watch") / "a 'quoted\" $folder", slurm)


@pytest.fixture(scope="module")
def running(project: Project) -> Iterator[str]:
    """A run whose first stage runs and whose others wait."""
    project.order("at-work", "preprocess", SLEEP)
    project.run("at-work")
    project.wait_for_state("at-work", "preprocess", "running")
    log = project.folder("at-work").latest_log("preprocess")
    wait_until("the stage has begun", lambda: log.exists() and "begun" in log.read_text(), 60)
    yield "at-work"
    project.call("cancel", "at-work")
    assert project.queued("at-work") == []


@slurm_test
@pytest.mark.parametrize("fault", ["squeue-1-refused", "squeue-1-silent"])
def test_a_silent_slurm_gives_the_last_known_state_and_its_age(
    project: Project, running: str, tmp_path: Path, fault: str
) -> None:
    before = project.states(running)
    fails = faulty_commands(project.slurm, tmp_path / "json", fault)
    found = project.json("status", running, env=fails)
    assert [each["state"] for each in found["stages"]] == before == ["running", "waiting", "waiting", "waiting"]
    assert found["queue"]["error"] and found["queue"]["age_seconds"] >= 0 and found["queue"]["seen"]
    assert all("ago" in each["reason"] for each in found["stages"])
    told = project.call("status", running, env=faulty_commands(project.slurm, tmp_path / "words", fault))
    assert "Slurm does not answer; the last look at the queue was" in told


@slurm_test
def test_what_the_jobs_recorded_goes_before_an_old_look(project: Project, tmp_path: Path) -> None:
    """A stage that ended while Slurm is silent is done."""
    project.order("quick", "preprocess", "import time; time.sleep(3)")
    project.run("quick", "--until", "preprocess")
    project.wait_for_state("quick", "preprocess", "running")
    wait_until("the marker is there", lambda: bool(project.folder("quick").done("preprocess")), 60)
    assert project.states("quick", faulty_commands(project.slurm, tmp_path / "bin", "squeue-1-refused"))[0] == "done"


@slurm_test
def test_why_explains_what_a_stage_waits_for(project: Project, running: str) -> None:
    job = project.jobs(running)["preprocess"]
    found = project.json("why", running, "sft")
    assert found["state"] == "waiting"
    assert found["explanation"] == f"it waits for the stages that it needs: preprocess (job {job}, running)"
    told = project.call("why", running, "sft")
    assert "it waits for the stages that it needs" in told and "submitted" in told


@slurm_test
def test_why_explains_a_full_cluster_with_the_start_that_slurm_expects(
    project: Project, running: str, tmp_path: Path
) -> None:
    """One node is taken wholly, the other in part, by the run at work."""
    taker = project.slurm.submit("-N1", "--exclusive", "--time=30", "--wrap", "sleep 600", cwd=tmp_path)
    project.slurm.wait_for(taker, "JobState", "RUNNING", 60)
    try:
        project.run("waits", "resources.preprocess.cpus=64", "--until", "preprocess")
        wait_until("Slurm expects a start", lambda: bool(project.json("why", "waits")["start"]), 60)
        found = project.json("why", "waits")
        assert found["state"] == "queued" and "taken" in found["explanation"] + plain_words("Resources")
        assert "Slurm expects it to start at 2" in project.call("why", "waits")
    finally:
        project.slurm.run("scancel", taker)
        project.call("cancel", "waits")


@slurm_test
def test_watch_goes_on_until_all_is_quiet(project: Project) -> None:
    project.order("watched", "preprocess", "import time; time.sleep(2)")
    project.run("watched", "--until", "sft")
    told = project.call("status", "watched", "--watch")
    assert told.rstrip().splitlines()[-3].startswith("sft") or "done" in told.splitlines()[-1]
    assert project.states("watched")[:2] == ["done", "done"]


@slurm_test
def test_logs_of_every_attempt_stay_and_latest_is_the_newest(project: Project) -> None:
    project.order("twice", "preprocess", "print('first'); raise ValueError('no')")
    project.run("twice", "--until", "preprocess")
    project.wait_for_state("twice", "preprocess", "failed")
    project.order("twice", "preprocess", "print('second')")
    project.call("retry", "twice")
    project.wait_for_state("twice", "preprocess", "done")
    assert "second" in project.call("logs", "twice") and "first" not in project.call("logs", "twice")
    assert "first" in project.call("logs", "twice", "preprocess", "--attempt", "1")
    found = project.json("logs", "twice")
    assert found["path"].endswith("attempt-2/rank0.out") and "second" in found["lines"]
    assert "no such attempt" in project.call("logs", "twice", "--attempt", "3", code=3)


@slurm_test
def test_cancel_takes_requeued_and_held_jobs_too(project: Project) -> None:
    project.order("held", "preprocess", SLEEP)
    project.run("held")
    jobs = project.jobs("held")
    project.wait_for_state("held", "preprocess", "running")
    project.slurm.run("scontrol", "requeue", jobs["preprocess"])
    project.slurm.run("scontrol", "hold", jobs["grpo"])
    found = project.json("cancel", "held")
    assert found["cancelled"] == jobs
    wait_until("the queue is empty", lambda: project.queued("held") == [])
    assert project.states("held") == ["cancelled"] * 4
    time.sleep(8)  # longer than a requeued job waits here
    assert project.queued("held") == []
    assert project.json("cancel", "held")["cancelled"] == {}


def test_the_first_failing_rank_is_shown(tmp_path: Path) -> None:
    run = RunDir(tmp_path, "r")
    run.new_attempt("sft")
    run.attempt_log("sft", 1).write_text("loading\n" + TWO_RANKS)
    rank, lines, log = failure(run, "sft", 1)
    assert rank == 1 and log.endswith("rank0.out")
    assert lines[0] == "Traceback (most recent call last):" and lines[-1] == "ValueError: outer"
    assert "KeyError: 'inner'" in lines


def test_a_failure_without_traceback_shows_the_end_of_the_log(tmp_path: Path) -> None:
    run = RunDir(tmp_path, "r")
    run.new_attempt("sft")
    run.attempt_log("sft", 1).write_text("\n".join(map(str, range(40))) + "\nkilled\n\n")
    rank, lines, _ = failure(run, "sft", 1)
    assert rank is None and lines[-1] == "killed" and len(lines) == 15
    assert failure(run, "sft", None) == (None, [], "")
    assert tracebacks("", 0) == []


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("(Resources)", "taken"),
        ("Priority", "higher priority"),
        ("ReqNodeNotAvail, UnavailableNodes:n1", "down, drained or reserved"),
        ("QOSMaxSubmitJobPerUserLimit", "as many jobs as they may"),
        ("AssocGrpGRES", "limit of your account or QOS"),
        ("MaxCpuPerAccount", "limit of the site"),
        ("QOSMaxWallDurationPerJobLimit", "more time"),
        ("SomethingNew", "Slurm says SomethingNew"),
    ],
)
def test_reasons_are_told_in_plain_words(reason: str, words: str) -> None:
    assert words in plain_words(reason)


def test_a_launcher_that_died_leaves_a_readable_timeline(tmp_path: Path) -> None:
    run = RunDir(tmp_path, "r")
    run.log_event("submitted", "sft", job="1", note="")
    with (run.logs / "events.jsonl").open("a") as file:
        file.write('{"time": "2026')
    assert [(each["event"], each["job"]) for each in run.events()] == [("submitted", "1")]
    assert "note" not in json.dumps(run.events())
