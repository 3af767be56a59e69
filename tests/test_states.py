"""Every way in which a job ends, seen with and without accounting, in time and after Slurm has forgotten it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, unavailable
from conftest import NO_SLURM, Slurm
from launching import Project
from processes import belonging, send, wait_until

pytestmark = pytest.mark.slurm

SLEEP = "print('begun', flush=True); import time; time.sleep(600)"
WORDS = {
    "COMPLETED": ("done", ""),
    "FAILED": ("failed", "not this time"),
    "CANCELLED": ("cancelled", "CANCELLED: cancelled with scancel"),
    "TIMEOUT": ("failed", "TIMEOUT: it reached its time limit"),
    "OUT_OF_MEMORY": ("failed", "OUT_OF_MEMORY: it used more memory than it asked for"),
    "PREEMPTED": ("interrupted", "PREEMPTED: another job took its place"),
    "NODE_FAIL": ("failed", "NODE_FAIL: its node failed"),
    "KILLED": ("failed", "FAILED: its job body ended without a record"),
}
"""How a job ends -> the state and the reason that the user sees."""
GONE = ("ended, cause unknown", "it ran, and is not in the queue any more")
UNACCOUNTED = {
    "CANCELLED": ("interrupted", ": cancelled or preempted, Slurm did not say which"),
    "OUT_OF_MEMORY": ("failed", ""),
    "NODE_FAIL": GONE,
    "KILLED": GONE,
}
"""The same where there is no accounting and nobody looked while Slurm knew."""


class Site:
    """One cluster and the project on it."""

    def __init__(self, cluster: Cluster, home: Path) -> None:
        self.cluster, self.slurm = cluster, Slurm(cluster)
        self.project = Project(home, self.slurm)
        (self.project.home / "configs" / "cluster.yaml").write_text("partition: preempt\nrequeue: false\n")
        self.began: dict[str, str] = {}

    def launch(self, how: str) -> str:
        """Submit a run whose first stage will end in this way; the stage's job."""
        orders = {"COMPLETED": "", "FAILED": "raise ValueError('not this time')"}
        orders["OUT_OF_MEMORY"] = "print('begun', flush=True); bytearray(1_000_000_000)"
        self.project.order(how, "preprocess", orders.get(how, SLEEP))
        size = ["resources.preprocess.memory=200M", "resources.preprocess.remedies=0"] if how == "OUT_OF_MEMORY" else []
        self.project.run(how, "--until", "preprocess", *size)
        self.began[how] = str(self.project.folder(how).submission("preprocess")["job"])
        if how not in ("COMPLETED", "FAILED", "OUT_OF_MEMORY"):
            log = self.project.folder(how).latest_log("preprocess")
            wait_until("the stage has begun", lambda: log.exists() and "begun" in log.read_text(), 60)
        return self.began[how]

    def end_job(self, how: str) -> None:
        """Make the job of a run end in this way."""
        job = self.began[how]
        if how == "CANCELLED":
            self.slurm.run("scancel", job)
        elif how == "TIMEOUT":
            assert self.slurm.run("scontrol", "update", f"JobId={job}", "EndTime=now+1").returncode == 0
        elif how == "KILLED":
            self.slurm.run("scancel", "--batch", "--signal=KILL", job)


@pytest.fixture(scope="module", params=["accounting", "no accounting"])
def site(request: pytest.FixtureRequest, slurm_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A Slurm that forgets jobs after seconds."""
    accounting = request.param == "accounting"
    if reason := unavailable(accounting=accounting):
        pytest.skip(NO_SLURM + reason)
    cluster = Cluster(
        slurm_root / request.param.replace(" ", "-"), min_job_age=2, accounting=accounting,
        extra="SlurmdTimeout=5",
    )  # fmt: skip
    cluster.up()
    yield Site(cluster, tmp_path_factory.mktemp("states") / "a 'quoted\" $folder")
    cluster.down()


def endings(site: Site) -> list[str]:
    """The ways in which jobs can be made to end here."""
    return [how for how in WORDS if site.cluster.cgroups or how != "OUT_OF_MEMORY"]


@pytest.fixture(scope="module")
def ended(site: Site) -> Site:
    """A run for each way, ended in it, and forgotten by Slurm; nobody looked meanwhile."""
    hows = endings(site)
    for how in [how for how in hows if how not in ("PREEMPTED", "NODE_FAIL")]:
        site.launch(how)
    for how in hows:
        site.end_job(how) if how in site.began else None
    wait_until("they have ended", lambda: site.slurm.run("squeue", "-h").stdout == "", 120)
    job = site.launch("PREEMPTED")
    taker = site.slurm.submit("--nodes=2", "--exclusive", "--partition=debug", "--wrap", "true", cwd=site.project.home)
    site.slurm.wait(job, taker, seconds=90)
    job = site.launch("NODE_FAIL")
    node = site.slurm.field(job, "NodeList")
    kill_node(site, node)
    wait_until("the node's jobs have ended", lambda: not site.slurm.run("squeue", "-h").stdout, 120)
    revive_node(site, node)
    wait_until("all are forgotten", lambda: not any(map(site.slurm.state, site.began.values())), 120)
    return site


def kill_node(site: Site, node: str) -> None:
    """slurmd and all steps of a node end at once, as with a power cut."""
    daemons = {pid for part, (pid, _) in site.cluster.processes.items() if part != node}
    for pid in belonging(site.cluster.root) - daemons:
        send(pid, signal.SIGKILL)


def revive_node(site: Site, node: str) -> None:
    """slurmd starts again."""
    site.cluster.start_node(node)


def test_states_are_right_when_slurm_has_forgotten(ended: Site) -> None:
    """Where there is no accounting, a job that could not record its end is of unknown end, and nothing is guessed."""
    told = {}
    for how in ended.began:
        each = ended.project.stages(how)["preprocess"]
        told[how] = (each["state"], each["reason"])
    wanted = dict(WORDS) if ended.cluster.accounting else {**WORDS, **UNACCOUNTED}
    for how, (state, reason) in told.items():
        assert state == wanted[how][0] and wanted[how][1] in reason, (how, state, reason)


def test_what_was_seen_in_time_is_remembered(ended: Site) -> None:
    """The one end that a job cannot record itself."""
    project, slurm = ended.project, ended.slurm
    project.order("seen", "preprocess", SLEEP)
    project.run("seen", "--until", "preprocess")
    job = project.jobs("seen")["preprocess"]
    project.wait_for_state("seen", "preprocess", "running")
    node = slurm.field(job, "NodeList")
    kill_node(ended, node)
    project.wait_for_state("seen", "preprocess", "failed", 120)
    wait_until("the job is forgotten", lambda: slurm.state(job) == "", 120)
    state = project.stages("seen")["preprocess"]
    assert state["slurm"] == "NODE_FAIL" and "its node failed" in state["reason"]
    told = project.call("status", "seen", "--events")
    assert "slurm NODE_FAIL" in told
    revive_node(ended, node)


def test_why_and_the_timeline_tell_how_a_job_ended(ended: Site) -> None:
    found = ended.project.json("why", "FAILED")
    assert found["traceback"][0].startswith("Traceback") and found["traceback"][-1] == "ValueError: not this time"
    assert found["rank"] == 0 and found["log"].endswith("attempt-1/rank0.out")
    assert "raise resources.preprocess.time" in ended.project.json("why", "TIMEOUT")["explanation"]
    assert "ValueError: not this time" in ended.project.call("why", "FAILED", "preprocess")
    events = [each["event"] for each in ended.project.folder("FAILED").events()]
    assert events[:5] == ["submitting", "submitted", "released", "running", "failed"]
