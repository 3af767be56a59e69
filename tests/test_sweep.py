"""Sweeps: names and combinations, then whole sweeps on a real Slurm with stages that do what they are told."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Slurm
from launching import STAGES, Project, faulty_commands
from test_gate import finished, rows
from test_remedies import ONCE

from pipeline.errors import UserError
from pipeline.recipe import NAME_PATTERN
from pipeline.settings import listed_texts
from pipeline.submit.sweep import combinations, trial_name

BEGUN = "import time; log = run.root / 'order'; log.open('a').write(f'{run.name} {name} begins\\n'); time.sleep(1)\n"
"""An order: say in one common file that the stage begins, and take a second."""
EVALUATED = """
import shutil
shutil.copytree(run.root / 'template', run.results, dirs_exist_ok=True)
run.report.write_text('made')
open(run.root / 'order', 'a').write(f'{run.name} {name} ends\\n')
raise SystemExit(0)
"""
"""An order for evaluate: results that can be compared."""
FAILS = "open(run.root / 'order', 'a').write(f'{run.name} {name} ends\\n'); raise ValueError('not this time')"


@pytest.mark.parametrize(
    ("text", "texts"),
    [
        ("1e-5,2e-5", ["1e-5", "2e-5"]),
        ("a", ["a"]),
        ("[1, 2],{a: 1, b: 2}", ["[1, 2]", "{a: 1, b: 2}"]),
        ("'x,y', null", ["'x,y'", "null"]),
    ],
)
def test_values_are_divided_at_commas_that_stand_outside(text: str, texts: list[str]) -> None:
    assert listed_texts(text, "here") == texts


@pytest.mark.parametrize("text", ["", "1,,2", "[1", "1]", "1],[2]x", "{a"])
def test_what_is_no_list_of_values_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="not a list of values"):
        listed_texts(text, "here")


def test_every_value_goes_with_every_other() -> None:
    assert combinations(["a.b=1,2", "c=x,y"]) == [
        ("a.b=1", "c=x"), ("a.b=1", "c=y"), ("a.b=2", "c=x"), ("a.b=2", "c=y"),
    ]  # fmt: skip


@pytest.mark.parametrize("words", [["a.b"], ["=1"], ["a.=1"], ["a=1", "a=2"], ["a=1,1"], ["a="]])
def test_what_is_no_sweep_is_refused(words: list[str]) -> None:
    with pytest.raises(UserError, match="--sweep"):
        combinations(words)


def test_names_of_trials_are_names_of_runs_and_distinct() -> None:
    assert trial_name("phi3", ["sft.learning_rate=1e-5"]) == "phi3-sft.learning_rate-1e-5"
    changes = [["data.source=a/b"], ["data.source=a b"], ["data.source=a-b"], ["x=" + "9" * 80], ["x=" + "9" * 81]]
    names = [trial_name("phi3", each) for each in changes]
    assert len(set(names)) == len(names) and all(NAME_PATTERN.fullmatch(name) for name in names)


@pytest.fixture(scope="module")
def project(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    project = Project(tmp_path_factory.mktemp("sweep") / "a 'quoted\" $folder", slurm)
    made = finished(tmp_path_factory.mktemp("made"), "made", rows(10), rows(2))
    made.results.rename(project.home / "template")
    yield project


def order(project: Project, name: str, fails: str = "") -> list[str]:
    """The names of three trials of `name`; their evaluation makes results, the stage `fails` of the second fails."""
    names = [f"{name}-sft.learning_rate-{rate}" for rate in ("1e-3", "2e-3", "3e-3")]
    for run in names:
        for stage in STAGES:
            project.order(run, stage, BEGUN + (EVALUATED if stage == "evaluate" else ""))
    if fails:
        project.order(names[1], fails, BEGUN + FAILS)
    return names


def sweep(name: str, values: str = "1e-3,2e-3,3e-3", via: str = "slurm") -> list[str]:
    return ["run", "smoke", "--run-name", name, "--sweep", f"sft.learning_rate={values}", "--via", via]


def states(project: Project, name: str) -> dict[str, str]:
    """State by trial, and of the comparison."""
    found = project.json("status", name)
    return {**{each["run"]: each["state"] for each in found["trials"]}, "compare": found["compare"]["state"]}


def wait_for_compare(project: Project, name: str) -> None:
    job = project.json("status", name)["compare"]["job"]
    assert project.slurm.wait(job, seconds=240) == ["COMPLETED"], project.call("status", name)


def table(project: Project, name: str) -> dict[str, dict[str, Any]]:
    text = (project.folder(name).results / "trials.json").read_text()
    return {each["run"]: each for each in json.loads(text)["trials"]}


def at_work(project: Project, names: list[str]) -> int:
    """The most trials that were at work at once, by what their stages wrote."""
    busy: set[str] = set()
    most = 0
    for line in (project.home / "order").read_text().splitlines():
        run, _, what = line.split()
        if run in names:
            (busy.discard if what == "ends" else busy.add)(run)
            most = max(most, len(busy))
    return most


@pytest.mark.slurm
def test_trials_go_in_turn_and_are_compared_although_one_fails(project: Project) -> None:
    site = project.home / "configs" / "cluster.yaml"
    site.write_text("sweep_at_once: 1\n")
    try:
        names = order(project, "turns", fails="sft")
        project.order(names[2], "evaluate", BEGUN + ONCE.format("raise MemoryError") + EVALUATED)
        before = project.json(*sweep("turns"), "--dry-run")
        assert [each["run"] for each in before["trials"]] == names and not project.folder("turns").logs.exists()
        found = project.json(*sweep("turns"))
        assert list(found["trials"]) == names and found["compare"]
        assert project.json(*sweep("turns")) == {"sweep": "turns", "trials": {}, "compare": found["compare"]}
        wait_for_compare(project, "turns")
        assert states(project, "turns") == dict(
            zip([*names, "compare"], ["done", "failed", "done", "done"], strict=True)
        )
        assert at_work(project, names) == 1
        rows = table(project, "turns")
        assert "not this time" in rows[names[1]]["missing"] and rows[names[0]]["f1"]["value"] > 0.5
        assert rows[names[2]]["changes"] == ["sft.learning_rate=3e-3"]
        assert all(name in (project.folder("turns").results / "compare.html").read_text() for name in names)
        assert project.queued(names[1]) == []
        assert [each["job"] for each in project.folder(names[2]).attempts("evaluate")] != [
            found["trials"][names[2]]["evaluate"]
        ], "a new job, which the comparison has waited for"

        project.order(names[1], "sft", BEGUN)
        told = project.json("retry", names[1])
        assert set(told["trials"]) == {names[1]} and set(told["trials"][names[1]]) == set(STAGES[1:])
        wait_for_compare(project, "turns")
        assert set(states(project, "turns").values()) == {"done"} and table(project, "turns")[names[1]]["f1"]
        assert "nothing to retry" in project.call("retry", "turns")
        assert "a sweep of this name has other trials" in project.call(*sweep("turns", "1e-3,7e-3"), code=2)
        assert "a sweep, not a run" in project.call("why", "turns", code=2)
    finally:
        site.unlink()


@pytest.mark.slurm
@pytest.mark.parametrize(
    "fault",
    [
        "sbatch-6-after",
        pytest.param("sbatch-13-after", marks=pytest.mark.long),
        pytest.param("scontrol-2-instead", marks=pytest.mark.long),
    ],
)
def test_a_killed_submitter_leaves_nothing_running_and_is_gone_on_from(
    project: Project, tmp_path: Path, fault: str
) -> None:
    name = f"killed-{fault}"
    names = order(project, name)
    done = project.start(*sweep(name), env=faulty_commands(project.slurm, tmp_path / "bin", fault))
    assert done.returncode == -signal.SIGKILL, done.stderr
    left = [job for run in (*names, name) for job in project.queued(run)]
    assert len(left) == (13 if fault.startswith("scontrol") else int(fault.split("-")[1]))
    assert {project.slurm.state(job) for job in left} == {"PENDING"}
    assert set(states(project, name).values()) <= {"queued", "waiting", "not started", "not submitted"}
    found = project.json(*sweep(name))
    jobs = [job for trial in found["trials"].values() for job in trial.values()] + [found["compare"]]
    assert len(jobs) == 13 and set(left) <= set(jobs)
    wait_for_compare(project, name)
    assert set(states(project, name).values()) == {"done"}
    assert {each["attempt"] for run in names for each in project.stages(run).values()} == {1}


@pytest.mark.long
@pytest.mark.slurm
def test_a_refused_job_takes_all_trials_back(project: Project, tmp_path: Path) -> None:
    names = order(project, "refused")
    told = project.call(
        *sweep("refused"), code=2, env=faulty_commands(project.slurm, tmp_path / "b", "sbatch-7-refused")
    )
    assert "no such luck" in told
    assert [job for run in (*names, "refused") for job in project.queued(run)] == []
    assert not any((project.folder(run).stage("preprocess") / "attempt-1").exists() for run in names)


@pytest.mark.slurm
def test_the_same_data_are_made_once_and_a_sweep_is_cancelled_whole(project: Project) -> None:
    names = order(project, "shared")
    for run in names:
        project.order(run, "preprocess", "import time; time.sleep(600)")
    found = project.json(*sweep("shared"))
    first = found["trials"][names[0]]["preprocess"]
    for run in names[1:]:
        waits = project.slurm.field(found["trials"][run]["preprocess"], "Dependency")
        assert waits.startswith(f"afterany:{first}")
    project.wait_for_state(names[0], "preprocess", "running")
    assert len(project.json("cancel", "shared")["cancelled"]) == 4
    assert [job for run in (*names, "shared") for job in project.queued(run)] == []
    assert set(states(project, "shared").values()) == {"cancelled"}
    assert not any((project.folder(run).stage("preprocess") / "attempt-1").exists() for run in names[1:])


@pytest.mark.slurm
def test_more_jobs_than_the_site_takes_are_refused_before_any(project: Project) -> None:
    site = project.home / "configs" / "cluster.yaml"
    site.write_text("submit_limit: 12\n")
    try:
        names = order(project, "many")
        told = project.call(*sweep("many"), code=2)
        assert "the sweep is 13 jobs more" in told and "at most: 12" in told and "submit_limit" in told
        assert [job for run in (*names, "many") for job in project.queued(run)] == []
    finally:
        site.unlink()


@pytest.mark.long
@pytest.mark.slurm
def test_on_this_machine_a_failed_trial_does_not_stop_the_others(project: Project) -> None:
    names = order(project, "here", fails="preprocess")
    told = project.call(*sweep("here", via="local"), code=1)
    assert "1 of 3 trials failed" in told
    assert list(states(project, "here").values()) == ["done", "failed", "done", "done"]
    project.order(names[1], "preprocess", "")
    project.call("retry", "here")
    assert set(states(project, "here").values()) == {"done"} and table(project, "here")[names[1]]["missing"] is None
