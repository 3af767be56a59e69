"""The test cluster is a Slurm."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from cluster import Cluster, marked_processes, unavailable
from conftest import Slurm

pytestmark = pytest.mark.slurm


def submit(slurm: Slurm, cwd: Path, *arguments: str) -> str:
    done = slurm.run("sbatch", "--parsable", *arguments, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_an_afterok_chain_runs_in_order(slurm: Slurm, tmp_path: Path) -> None:
    first = submit(slurm, tmp_path, "--wrap", "sleep 1; echo one >> order")
    second = submit(slurm, tmp_path, f"--dependency=afterok:{first}", "--wrap", "echo two >> order")
    assert slurm.wait(first, second) == ["COMPLETED", "COMPLETED"]
    assert (tmp_path / "order").read_text() == "one\ntwo\n"


def test_the_child_of_a_failed_job_never_starts(slurm: Slurm, tmp_path: Path) -> None:
    first = submit(slurm, tmp_path, "--wrap", "exit 3")
    second = submit(slurm, tmp_path, f"--dependency=afterok:{first}", "--wrap", "touch started")
    assert slurm.wait(first) == ["FAILED"]
    for _ in range(50):
        if slurm.field(second, "Reason") == "DependencyNeverSatisfied":
            break
        slurm.run("sleep", "0.2")
    assert slurm.field(second, "Reason") == "DependencyNeverSatisfied"
    slurm.run("scancel", second)
    assert slurm.wait(second) == ["CANCELLED"]
    assert not (tmp_path / "started").exists()


def test_gpus_are_counted(slurm: Slurm, tmp_path: Path) -> None:
    job = submit(slurm, tmp_path, "--gres=gpu:2", "--output=out", "--wrap", 'echo "$CUDA_VISIBLE_DEVICES"')
    assert slurm.wait(job) == ["COMPLETED"]
    assert (tmp_path / "out").read_text() == "0,1\n"
    assert slurm.run("sbatch", "--test-only", "--gres=gpu:8", "--wrap", "true", cwd=tmp_path).returncode == 0
    assert slurm.run("sbatch", "--test-only", "--gres=gpu:9", "--wrap", "true", cwd=tmp_path).returncode != 0


def test_down_leaves_no_process() -> None:
    if unavailable():
        pytest.skip(f"no Slurm here: {unavailable()}")
    root = Path(tempfile.mkdtemp(prefix="slurm", dir="/tmp"))
    root.chmod(0o755)
    cluster = Cluster(root, nodes=1)
    cluster.up()
    Slurm(cluster).run("sbatch", "--wrap", "sleep 600", cwd=root)
    assert len(marked_processes(root)) >= 3
    cluster.down()
    assert marked_processes(root) == []
