"""What runs is what was submitted: the copy of the code."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Slurm
from launching import Project
from processes import wait_until

from pipeline.snapshot import code_files, code_hash, take_snapshot

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module")
def project(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    yield Project(tmp_path_factory.mktemp("snapshot") / "a 'quoted\" $folder", slurm)


def test_a_copy_is_whole_and_has_the_hash_of_its_source(project: Project, weird_tmp_path: Path) -> None:
    folder = weird_tmp_path / "copy"
    (project.home / "configs" / "cluster.yaml").write_text("account: mine\n")
    take_snapshot(folder, project.home)
    (project.home / "configs" / "cluster.yaml").unlink()
    copied = [path.as_posix() for path in code_files(folder)]
    assert {"pipeline/cli.py", "configs/smoke.yaml", "slurm/stage.sh"} <= set(copied)
    assert not [path for path in copied if "__pycache__" in path or path.endswith("cluster.yaml")]
    assert not (folder / "configs" / "cluster.yaml").exists()
    assert code_hash(folder) == code_hash(project.home)
    assert list(weird_tmp_path.iterdir()) == [folder]


def test_a_torn_copy_is_made_anew(project: Project, tmp_path: Path) -> None:
    take_snapshot(tmp_path / "copy", project.home)
    (tmp_path / "copy" / "pipeline" / "dag.py").unlink()
    take_snapshot(tmp_path / "copy", project.home)
    assert code_hash(tmp_path / "copy") == code_hash(project.home)


def test_every_change_of_a_file_or_a_name_changes_the_hash(project: Project, tmp_path: Path) -> None:
    found = set()
    for number, change in enumerate(("", "edit", "add", "rename")):
        copy = tmp_path / str(number)
        take_snapshot(copy, project.home)
        file = copy / "pipeline" / "stages" / "sft.py"
        if change == "edit":
            file.chmod(0o644)
            file.write_text(file.read_text() + "\n")
        elif change == "add":
            (file.parent / "more.json").write_text("{}")
        elif change == "rename":
            file.rename(file.with_name("sft2.py"))
        found.add(code_hash(copy))
    assert len(found) == 4


def test_jobs_run_the_code_that_was_submitted_also_after_a_requeue(project: Project) -> None:
    """The project is edited while its jobs wait, and again before a requeue; nothing of it shows."""
    tell = "print('old code', flush=True); import time; time.sleep(3)"
    project.order("edited", "sft", tell)
    project.order("edited", "preprocess", "import time; time.sleep(2)")
    project.run("edited")
    stage = project.home / "pipeline" / "stages" / "sft.py"
    old = stage.read_text()
    try:
        stage.write_text("raise SystemExit('new code')\n")
        job = project.jobs("edited")["sft"]
        log = project.folder("edited").latest_log("sft")
        wait_until("the stage has begun", lambda: log.exists() and "old code" in log.read_text(), 60)
        assert project.slurm.run("scontrol", "requeue", job).returncode == 0
        assert project.slurm.wait(*project.jobs("edited").values()) == ["COMPLETED"] * 4
    finally:
        stage.write_text(old)
    logs = [path.read_text() for path in sorted(project.folder("edited").stage("sft").glob("attempt-*/rank0.out"))]
    assert len(logs) == 2 and "old code" in logs[1] and not any("new code" in text for text in logs)


@pytest.mark.parametrize("change", ["edit", "another"])
def test_a_job_refuses_other_code_than_was_submitted(project: Project, change: str) -> None:
    name = f"refused-{change}"
    project.order(name, "preprocess", "print('begun', flush=True); import time; time.sleep(3)")
    project.run(name)
    log = project.folder(name).latest_log("preprocess")
    wait_until("the first stage has begun", lambda: log.exists() and "begun" in log.read_text(), 60)
    code = next(iter((project.folder(name).logs / "code").iterdir()))
    if change == "edit":
        file = code / "pipeline" / "stages" / "sft.py"
        file.chmod(0o644)
        file.write_text(file.read_text() + "# edited\n")
        told = "the code is not what was submitted"
    else:  # what an editable install of the live project would do
        (code / "pipeline").rename(code / "gone")
        (code / "pipeline").symlink_to(project.home / "pipeline")
        told = "another copy of the code is at work than was submitted"
    job = project.jobs(name)["sft"]
    assert project.slurm.wait(job, seconds=60) == ["FAILED"]
    state = project.stages(name)["sft"]
    assert state["state"] == "failed" and told in state["reason"]
    assert project.slurm.field(job, "ExitCode") == "2:0"
    project.call("cancel", name)
