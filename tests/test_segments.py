"""Stages in segments: what Slurm is told, then whole runs where jobs last a minute and may not be requeued."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Slurm
from launching import STAGES, Project, faulty_commands
from processes import wait_until
from test_remedies import ONCE

from pipeline import dag
from pipeline.cluster import ClusterFile
from pipeline.errors import UserError
from pipeline.load import build_recipe, load_recipe, recipe_file
from pipeline.recipe import Recipe, Resources
from pipeline.run import HOME, RunDir
from pipeline.settings import read_yaml
from pipeline.submit.plan import Choice, make_plan
from pipeline.submit.segments import afterok, proposal, refuse_mixed, time_flags, waited_for
from pipeline.submit.transaction import placeholders, sbatch_commands

TRAINER = """
import json, os, time
from pipeline.training.stop import STOP_FILE, STOPPED_CODE, STOPPED_FILE
attempt, steps = Path(os.environ["RLC_ATTEMPT_DIR"]), run.stage(name) / "steps"
made = int(steps.read_text()) if steps.exists() else 0
while made < {steps}:
    if (attempt / STOP_FILE).exists():
        (attempt / STOPPED_FILE).write_text(json.dumps({{"progress": f"at step {{made}}"}}))
        raise SystemExit(STOPPED_CODE)
    time.sleep(0.5)
    made += 1
    steps.write_text(str(made))
"""
"""An order: train for so many steps of half a second, with a checkpoint each; save and stop when asked to."""


def test_one_segment_of_a_stage_is_enough() -> None:
    assert afterok([["1"]]) == "afterok:1"
    assert afterok([["1", "2"]]) == "afterok:1?afterok:2"
    assert afterok([["1"], ["2"]]) == "afterok:1,afterok:2"
    assert afterok([]) == ""


def recipe_with(evaluate_needs: list[str], *, grpo_needs: list[str], segments: int) -> Recipe:
    tree = read_yaml(HOME / "configs" / "smoke.yaml")
    tree["stages"] = [
        "preprocess", "sft", {"name": "grpo", "needs": grpo_needs}, {"name": "evaluate", "needs": evaluate_needs},
    ]  # fmt: skip
    tree["resources"]["sft"]["segments"] = segments
    return build_recipe("smoke", tree, "smoke.yaml")


def test_a_stage_that_needs_a_segmented_stage_and_another_is_refused(tmp_path: Path) -> None:
    recipe = recipe_with(["sft", "grpo"], grpo_needs=["preprocess"], segments=2)
    stages = dag.build(recipe, RunDir(tmp_path, "x"))
    with pytest.raises(UserError, match=r"evaluate needs sft and grpo.*segments: 2.*resources\.sft.*set segments to 1"):
        refuse_mixed(recipe, stages, STAGES)
    with pytest.raises(UserError, match="evaluate needs sft and grpo"):
        make_plan(recipe, RunDir(tmp_path, "x"), ClusterFile(), Choice())
    refuse_mixed(recipe, stages, ["grpo", "evaluate"])  # sft is done
    one = recipe_with(["sft", "grpo"], grpo_needs=["preprocess"], segments=1)
    refuse_mixed(one, dag.build(one, RunDir(tmp_path, "x")), STAGES)


def test_a_need_that_another_need_waits_for_is_not_named(tmp_path: Path) -> None:
    recipe = recipe_with(["sft", "grpo"], grpo_needs=["sft"], segments=2)
    stages = dag.build(recipe, RunDir(tmp_path, "x"))
    refuse_mixed(recipe, stages, STAGES)
    assert waited_for(stages["evaluate"], stages, STAGES) == ["grpo"]
    assert waited_for(stages["evaluate"], stages, ["sft", "evaluate"]) == ["sft"]


def test_the_commands_of_segments(tmp_path: Path) -> None:
    recipe = load_recipe(recipe_file(HOME, "smoke"), ["resources.sft.segments=3"])
    plan = make_plan(recipe, RunDir(tmp_path, "x"), ClusterFile(), Choice())
    names = {name: placeholders(plan, name) for name in STAGES}
    told: dict[str, list[str]] = {name: [] for name in STAGES}
    for each in plan.stages:
        for command in sbatch_commands(plan, each, names, names[each.stage.name]):
            told[each.stage.name] += [word.partition("=")[2] for word in command if word.startswith("--dependency=")]
    assert told == {
        "preprocess": [],
        "sft": ["afterok:<job of preprocess>", "afterany:<job 1 of sft>", "afterany:<job 2 of sft>"],
        "grpo": ["afterok:<job 1 of sft>?afterok:<job 2 of sft>?afterok:<job 3 of sft>"],
        "evaluate": ["afterok:<job of grpo>"],
    }


def test_jobs_ask_for_what_the_site_gives() -> None:
    cluster = ClusterFile(max_time="02:00:00", gpu_max_time="01:00:00")
    long, short = Resources(time="08:00:00"), Resources(time="00:30:00")
    assert time_flags(cluster, long) == ["--time=02:00:00", "--signal=B:USR1@120"]
    assert time_flags(cluster, long.model_copy(update={"gpus": 1}))[0] == "--time=01:00:00"
    assert time_flags(cluster, short) == [] == time_flags(ClusterFile(), long)


@pytest.mark.parametrize(
    ("cluster", "told"),
    [
        (ClusterFile(), {}),
        (ClusterFile(requeue=False), {"sft": "2 would do", "grpo": "2 would do", "evaluate": "2 would do"}),
        (
            ClusterFile(max_time="00:05:00"),
            {"preprocess": "cannot go on", "sft": "goes back", "grpo": "goes back", "evaluate": "goes back"},
        ),
        (
            ClusterFile(requeue=False, max_time="00:05:00"),
            {"preprocess": "cannot go on", "sft": "3 would do", "grpo": "3 would do", "evaluate": "3 would do"},
        ),
    ],
)
def test_the_plan_proposes_segments(tmp_path: Path, cluster: ClusterFile, told: dict[str, str]) -> None:
    recipe = load_recipe(recipe_file(HOME, "smoke"))
    stages = dag.build(recipe, RunDir(tmp_path, "x"))
    found = {name: text for name, stage in stages.items() if (text := proposal(cluster, recipe, stage))}
    assert found.keys() == told.keys() and all(told[name] in text for name, text in found.items())
    assert set(found.values()) <= set(make_plan(recipe, RunDir(tmp_path, "x"), cluster, Choice()).warnings)
    enough = [f"resources.{name}.segments=3" for name in STAGES]
    left = make_plan(load_recipe(recipe_file(HOME, "smoke"), enough), RunDir(tmp_path, "x"), cluster, Choice()).warnings
    assert not any("would do" in text for text in left)


@pytest.fixture(scope="module")
def project(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """On a partition whose jobs last at most a minute, where no job may be requeued."""
    project = Project(tmp_path_factory.mktemp("segments") / "a 'quoted\" $folder", slurm)
    site = "partition: short\nmax_time: '00:01:00'\nrequeue: false\nkill_on_invalid_dep: true\n"
    (project.home / "configs" / "cluster.yaml").write_text(site)
    yield project


def segments(project: Project, name: str) -> list[str]:
    """The jobs of sft."""
    found: list[str] = project.folder(name).submission("sft")["segments"]
    return found


@pytest.mark.slurm
def test_training_goes_on_from_segment_to_segment_and_its_child_starts_once(project: Project) -> None:
    project.order("cut", "sft", TRAINER.format(steps=150))
    project.run("cut", "resources.sft.segments=6")
    jobs = segments(project, "cut")
    assert len(jobs) == 6 and {project.slurm.field(job, "TimeLimit") for job in jobs} == {"00:01:00"}
    assert project.wait_for_state("cut", "sft", "running")["reason"] == "segment 1 of 6"
    assert "at work already" in project.run("cut", "resources.sft.segments=6")
    assert project.slurm.wait(*jobs, *project.queued("cut"), seconds=420).count("FAILED") >= 1
    stages = project.stages("cut")
    assert {each["state"] for each in stages.values()} == {"done"}, stages
    assert [stages[stage]["attempt"] for stage in ("preprocess", "grpo", "evaluate")] == [1, 1, 1]
    ran = [each["job"] for each in project.folder("cut").attempts("sft")]
    assert ran == jobs[: len(ran)] and 2 <= len(ran) < 6
    assert [project.slurm.state(job) for job in jobs] == ["FAILED"] * (len(ran) - 1) + ["COMPLETED"] * (7 - len(ran))
    ended = [project.slurm.field(job, "EndTime") for job in jobs]
    assert project.slurm.field(stages["grpo"]["job"], "StartTime") >= ended[len(ran) - 1]
    assert "skip  sft" in project.run("cut", "resources.sft.segments=6")


@pytest.mark.slurm
def test_after_a_failure_the_other_segments_end_at_once_and_retry_mends_it(project: Project) -> None:
    project.order("bad", "sft", "raise ValueError('not this time')")
    project.run("bad", "resources.sft.segments=3")
    jobs = segments(project, "bad")
    assert project.slurm.wait(*jobs, seconds=120) == ["FAILED"] * 3
    output = project.folder("bad").slurm_output / f"sft_bad_{jobs[2]}.out"
    assert f"sft failed in the segment before this one (job {jobs[0]}): ValueError: not this time" in output.read_text()
    stages = project.stages("bad")
    assert stages["sft"]["state"] == "failed" and stages["sft"]["attempt"] == 1
    project.wait_for_state("bad", "grpo", "cancelled")
    project.order("bad", "sft", "")
    project.call("retry", "bad")
    assert project.slurm.wait(*segments(project, "bad"), *project.jobs("bad").values())[0] == "COMPLETED"
    assert not set(segments(project, "bad")) & set(jobs)
    assert set(project.states("bad")) == {"done"}


@pytest.mark.long
@pytest.mark.slurm
def test_a_remedy_that_takes_a_new_job_takes_new_segments(project: Project) -> None:
    project.order("more", "sft", ONCE.format("raise MemoryError"))
    project.run("more", "resources.sft.segments=3")
    before, waiting = segments(project, "more"), project.jobs("more")["grpo"]
    project.wait_for_state("more", "evaluate", "done", 120)
    after = segments(project, "more")
    assert project.slurm.wait(*before, *after) == ["FAILED", "CANCELLED", "CANCELLED", *["COMPLETED"] * 3]
    assert [each["job"] for each in project.folder("more").attempts("sft")] == [before[0], after[0]]
    assert project.jobs("more")["grpo"] == waiting and set(project.states("more")) == {"done"}


@pytest.mark.slurm
def test_segments_are_cancelled_together(project: Project) -> None:
    project.order("gone", "sft", TRAINER.format(steps=1000))
    project.run("gone", "resources.sft.segments=4")
    jobs = segments(project, "gone")
    project.wait_for_state("gone", "sft", "running")
    wait_until("its attempt has begun", lambda: bool(project.folder("gone").attempts("sft")), 60)
    assert project.json("cancel", "gone")["cancelled"]["sft"] == " ".join(jobs)
    assert project.slurm.wait(*jobs) == ["CANCELLED"] * 4 and project.queued("gone") == []
    assert project.states("gone") == ["done", "cancelled", "cancelled", "cancelled"]
    assert len(project.folder("gone").attempts("sft")) == 1


@pytest.mark.long
@pytest.mark.slurm
@pytest.mark.parametrize("fault", ["sbatch-3-after", "sbatch-4-before", "sbatch-5-after"])
def test_a_launcher_killed_between_segments_is_gone_on_from(project: Project, tmp_path: Path, fault: str) -> None:
    """The second and the third segment are the third and fourth job, grpo the fifth."""
    name = f"torn-{fault}"
    words = ["run", "smoke", "resources.sft.segments=3", "--run-name", name, "--via", "slurm"]
    done = project.start(*words, env=faulty_commands(project.slurm, tmp_path / "bin", fault))
    assert done.returncode == -signal.SIGKILL, done.stderr
    end = time.monotonic() + 10
    while len(project.queued(name)) < int(fault.split("-")[1]) and time.monotonic() < end:
        time.sleep(0.1)
    left = project.queued(name)
    assert {project.slurm.state(job) for job in left} == {"PENDING"}
    assert set(project.states(name)) <= {"queued", "waiting", "not started", "not submitted"}
    project.call(*words)
    jobs = segments(project, name)
    assert len(jobs) == 3 and set(jobs) <= {*left, *jobs}
    assert project.slurm.wait(*jobs, *project.jobs(name).values(), *left)[:3] == ["COMPLETED"] * 3
    assert set(project.states(name)) == {"done"} and project.queued(name) == []
    assert {each["attempt"] for each in project.stages(name).values()} == {1}
