"""The test cluster is a Slurm, and leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import cluster
import pytest
from cluster import Cluster
from conftest import Slurm
from processes import belonging, start_time, wait_until

pytestmark = pytest.mark.slurm

COMMAND = [sys.executable, str(Path(__file__).parent / "slurm_cluster" / "cluster.py")]
LEAVES_ORPHANS = """#!/bin/bash
setsid env -i sleep 600 &
echo $! >orphan
(setsid sleep 600 & echo $! >daemon)
trap '' TERM
touch ready
while sleep 1; do :; done
"""


def call(verb: str, root: Path, *options: str) -> str:
    done = subprocess.run([*COMMAND, verb, str(root), *options], capture_output=True, text=True, check=True)
    return done.stdout


def running(pid: int) -> bool:
    return start_time(pid) is not None


def test_two_nodes_are_idle(slurm: Slurm) -> None:
    wanted = [f"{name} idle 64 600000 gpu:a100:8" for name in slurm.cluster.names]
    words = ("sinfo", "-h", "-N", "-p", "debug", "-o", "%N %t %c %m %G")  # another file's last job may be ending still
    wait_until("two nodes are idle", lambda: slurm.run(*words).stdout.splitlines() == wanted, 60)
    assert set(slurm.run("sinfo", "-h", "-o", "%P").stdout.split()) == {"debug*", "preempt", "short"}


def test_an_afterok_chain_runs_in_order(slurm: Slurm, tmp_path: Path) -> None:
    first = slurm.submit("--wrap", "sleep 1; echo one >> order", cwd=tmp_path)
    second = slurm.submit(f"--dependency=afterok:{first}", "--wrap", "echo two >> order", cwd=tmp_path)
    assert slurm.state(second) == "PENDING"
    assert slurm.wait(first, second) == ["COMPLETED", "COMPLETED"]
    assert (tmp_path / "order").read_text() == "one\ntwo\n"


def test_the_child_of_a_failed_job_never_starts(slurm: Slurm, tmp_path: Path) -> None:
    first = slurm.submit("--wrap", "exit 3", cwd=tmp_path)
    second = slurm.submit(f"--dependency=afterok:{first}", "--wrap", "touch started", cwd=tmp_path)
    assert slurm.wait(first) == ["FAILED"]
    assert slurm.field(first, "ExitCode") == "3:0"
    slurm.wait_for(second, "Reason", "DependencyNeverSatisfied")
    assert slurm.state(second) == "PENDING"
    slurm.run("scancel", second)
    assert slurm.wait(second) == ["CANCELLED"]
    assert not (tmp_path / "started").exists()


def test_a_job_of_real_size_starts_and_gets_its_gpus(slurm: Slurm, weird_tmp_path: Path) -> None:
    size = ["--gres=gpu:2", "--cpus-per-task=16", "--mem=200G", "--time=1-00:00:00"]
    show = 'echo "$CUDA_VISIBLE_DEVICES"; srun printenv SLURM_CPUS_PER_TASK'
    job = slurm.submit(*size, "--output=out", "--wrap", show, cwd=weird_tmp_path)
    assert slurm.wait(job) == ["COMPLETED"]
    assert (weird_tmp_path / "out").read_text() == "0,1\n16\n"


@pytest.mark.parametrize(
    ("resources", "taken"),
    [
        ("--gres=gpu:8", True),
        ("--gres=gpu:9", False),
        ("--gres=gpu:a100:8", True),
        ("--gres=gpu:h100:1", False),
        ("--mem=600000M", True),
        ("--mem=600001M", False),
        ("--partition=short --time=1", True),
        ("--partition=short --time=2", False),
        ("--partition=nonsense", False),
    ],
)
def test_what_no_node_has_is_refused(slurm: Slurm, tmp_path: Path, resources: str, taken: bool) -> None:
    done = slurm.run("sbatch", "--test-only", *resources.split(), "--wrap", "true", cwd=tmp_path)
    assert (done.returncode == 0) == taken, done.stderr
    assert slurm.run("squeue", "-h").stdout == ""


def test_memory_is_limited_where_cgroups_work(slurm: Slurm, tmp_path: Path) -> None:
    if not slurm.cluster.cgroups:
        pytest.skip("no cgroup v1 here: jobs of the test Slurm may use any memory")
    code = "bytearray(400_000_000)"
    job = slurm.submit("--mem=100M", "--wrap", f"{sys.executable} -c '{code}'", cwd=tmp_path)
    assert slurm.wait(job) == ["OUT_OF_MEMORY"]


def test_scancel_leaves_the_queue_empty(slurm: Slurm, tmp_path: Path) -> None:
    first = slurm.submit("--wrap", "sleep 600", cwd=tmp_path)
    second = slurm.submit(f"--dependency=afterok:{first}", "--wrap", "true", cwd=tmp_path)
    slurm.wait_for(first, "JobState", "RUNNING")
    slurm.run("scancel", first, second)
    assert slurm.wait(first, second) == ["CANCELLED", "CANCELLED"]
    wait_until("the queue is empty", lambda: slurm.run("squeue", "-h").stdout == "")


def test_an_ended_job_is_forgotten_and_extra_lines_win(slurm_root: Path, tmp_path: Path) -> None:
    own = Cluster(slurm_root / "forgets", nodes=1, min_job_age=2, extra="KillWait=7\nPartitionName=more Nodes=ALL")
    own.up()
    try:
        slurm = Slurm(own)
        told = slurm.run("scontrol", "show", "config")
        assert told.stderr == "" and "KillWait                = 7 sec" in told.stdout
        job = slurm.submit("--partition=more", "--wrap", "true", cwd=tmp_path)
        assert slurm.wait(job) == ["COMPLETED"]
        slurm.wait_for(job, "JobState", "")
    finally:
        own.down()


@pytest.mark.parametrize("cgroups", [True, False])
def test_down_leaves_no_process(slurm: Slurm, slurm_root: Path, tmp_path: Path, cgroups: bool) -> None:
    """Beside another cluster, with a job that ignores TERM and has started what nobody waits for."""
    if cgroups and not slurm.cluster.cgroups:
        pytest.skip("no cgroup v1 here")
    root = slurm_root / f"down-{cgroups}"
    call("up", root, "--nodes=1", "--gpus=0", *([] if cgroups else ["--no-cgroups"]))
    (tmp_path / "job.sh").write_text(LEAVES_ORPHANS)
    own = Cluster.recorded(root)
    Slurm(own).submit("job.sh", cwd=tmp_path)
    wait_until("the job runs", (tmp_path / "ready").exists)
    orphans = [int((tmp_path / name).read_text()) for name in ("orphan", "daemon")]
    assert all(map(running, orphans))
    before = belonging(root)
    assert len(before) >= 6 and before.isdisjoint(belonging(slurm.cluster.root))
    call("down", root)
    assert not any(map(running, [*before, *orphans]))
    assert not list(Path("/sys/fs/cgroup").glob(f"*/slurm_{own.prefix}*"))
    call("down", root)
    assert slurm.run("scontrol", "ping").returncode == 0


def test_a_start_that_is_killed_half_way_harms_no_other(slurm_root: Path) -> None:
    torn, whole = slurm_root / "torn", slurm_root / "whole"
    starter = subprocess.Popen([*COMMAND, "up", str(torn)])
    wait_until("the first daemon runs", lambda: len(belonging(torn)) > 0)
    starter.kill()
    starter.wait()
    call("up", whole)
    told = subprocess.run(
        ["bash", "-c", f'eval "$({" ".join(COMMAND)} env {whole})" && sinfo -h -p debug -o "%D %t"'],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert told.stdout == "2 idle\n"
    for root in (torn, whole):
        call("down", root)
        assert not belonging(root)


def test_a_daemon_that_gives_up_is_named_and_the_others_end(slurm_root: Path) -> None:
    broken = Cluster(slurm_root / "broken", extra="SelectType=select/nonsense")
    with pytest.raises(RuntimeError, match=r"slurmctld did not start:\n(.*\n)*.*select/nonsense"):
        broken.up()
    assert not belonging(broken.root)


def test_only_the_recorded_process_is_ended(slurm_root: Path) -> None:
    """A number that now belongs to another process is left alone."""
    other = subprocess.Popen(["sleep", "600"])
    own = Cluster(slurm_root / "reused", processes={"slurmctld": (other.pid, "1")})
    own.root.mkdir()
    own.down()
    assert other.poll() is None
    other.kill()
    other.wait()


def test_what_keeps_slurm_from_starting_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cluster.unavailable() is None or "\n" not in str(cluster.unavailable())
    monkeypatch.setattr(cluster, "SBIN", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    if os.geteuid() == 0:
        assert "not installed: munged, slurmctld" in str(cluster.unavailable())
