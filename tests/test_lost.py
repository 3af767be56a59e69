"""What a controller loses that crashes before it has saved: jobs, releases, the ids that it gave away."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, unavailable
from conftest import NO_SLURM, Slurm
from launching import STAGES, Project
from processes import wait_until

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    reason = unavailable()
    if reason:
        pytest.skip(NO_SLURM + reason)
    root = Path(tempfile.mkdtemp(prefix="lost", dir="/tmp"))
    root.chmod(0o755)
    prolog = root / "prolog"
    prolog.write_text(f"#!/bin/sh\ntest ! -e {root}/slurm/broken\n")
    prolog.chmod(0o755)
    cluster = Cluster(root / "slurm", extra=f"Prolog={prolog}")
    cluster.up()
    yield Project(tmp_path_factory.mktemp("lost") / "home", Slurm(cluster))
    cluster.down()
    shutil.rmtree(root)


def forget_since(cluster: Cluster, saved: Path) -> None:
    """Crash the controller and have it come back with the state of then."""
    cluster.kill("slurmctld")
    state = cluster.root / "state"
    shutil.rmtree(state)
    shutil.copytree(saved, state)
    cluster.start_controller()


def finish(project: Project, name: str) -> None:
    assert project.slurm.wait(*project.jobs(name).values(), seconds=60) == ["COMPLETED"] * 4, project.call("why", name)
    assert project.states(name) == ["done"] * 4


def test_jobs_that_slurm_lost_are_told_and_submitted_again(project: Project, tmp_path: Path) -> None:
    """The ids of the lost jobs go to those of another run: they are not taken for ours."""
    cluster = project.slurm.cluster
    for node in cluster.names:
        cluster.call("scontrol", "update", f"NodeName={node}", "State=DRAIN", "Reason=test")
    shutil.copytree(cluster.root / "state", tmp_path / "state")
    project.run("lost")
    lost = project.jobs("lost")
    forget_since(cluster, tmp_path / "state")
    project.run("other")
    other = project.jobs("other")
    assert set(lost.values()) & set(other.values()), "an id was given away again"
    for node in cluster.names:
        cluster.call("scontrol", "update", f"NodeName={node}", "State=RESUME")
    finish(project, "other")
    states = project.stages("lost")
    assert [each["state"] for each in states.values()] == ["ended, cause unknown"] * 4
    assert "Slurm does not know it" in states["preprocess"]["reason"]
    project.call("retry", "lost")
    finish(project, "lost")


def test_a_release_that_slurm_lost_is_made_again(project: Project) -> None:
    project.order("held", "preprocess", "import time; time.sleep(2)")
    for node in project.slurm.cluster.names:
        project.slurm.run("scontrol", "update", f"NodeName={node}", "State=DRAIN", "Reason=test")
    project.run("held")
    jobs = project.jobs("held")
    assert list(jobs) == STAGES
    assert project.slurm.run("scontrol", "uhold", jobs["preprocess"]).returncode == 0
    for node in project.slurm.cluster.names:
        project.slurm.run("scontrol", "update", f"NodeName={node}", "State=RESUME")
    assert "Slurm crashed before it had saved" in project.call("why", "held")
    project.run("held")
    assert project.jobs("held") == jobs
    finish(project, "held")


def test_a_job_that_a_node_could_not_start_is_started_again(project: Project) -> None:
    """Slurm holds it and drains the node; so it does after a crash with a job that it takes for a second one."""
    cluster = project.slurm.cluster
    (cluster.root / "broken").touch()
    project.run("refused")
    jobs = project.jobs("refused")
    wait_until("it is held", lambda: "launch failed" in project.stages("refused")["preprocess"]["reason"], 60)
    assert "`run` lets it try again" in project.call("why", "refused")
    (cluster.root / "broken").unlink()
    for node in cluster.names:
        cluster.call("scontrol", "update", f"NodeName={node}", "State=RESUME")
    project.run("refused")
    assert project.jobs("refused") == jobs
    finish(project, "refused")
