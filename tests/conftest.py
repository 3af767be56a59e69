"""Fixtures that all tests share: a real Slurm, folders with hostile names, loud skips."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "slurm_cluster"))

from cluster import Cluster, unavailable

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "disabled")

END_STATES = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE"}


class Slurm:
    """The test cluster as the tests use it."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.env = cluster.env

    def run(self, *command: str, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a command that talks to this cluster."""
        return subprocess.run(
            command, cwd=cwd, env={**self.env, **env}, capture_output=True, text=True, timeout=120, check=False
        )

    def field(self, job: str, name: str) -> str:
        """One field of `scontrol show job`, such as JobState, Reason or Dependency."""
        shown = self.run("scontrol", "show", "job", "-o", job).stdout
        return next((word.partition("=")[2] for word in shown.split() if word.startswith(f"{name}=")), "")

    def wait(self, *jobs: str, seconds: float = 120) -> list[str]:
        """Wait until all jobs have ended; their states."""
        end = time.monotonic() + seconds
        while not all(self.field(job, "JobState") in END_STATES for job in jobs):
            assert time.monotonic() < end, self.run("squeue").stdout
            time.sleep(0.2)
        return [self.field(job, "JobState") for job in jobs]


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    """A real Slurm of two nodes, started once."""
    reason = unavailable()
    if reason:
        pytest.skip(f"no Slurm here: {reason}")
    root = Path(tempfile.mkdtemp(prefix="slurm", dir="/tmp"))  # munged refuses folders below private ones
    root.chmod(0o755)
    cluster = Cluster(root)
    cluster.up()
    yield Slurm(cluster)
    cluster.down()
    shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def weird_tmp_path(tmp_path: Path) -> Path:
    """A folder whose name breaks every unquoted use of it."""
    path = tmp_path / "a 'b\" $c; d"
    path.mkdir()
    return path


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say loudly when tests that need Slurm or real data did not run."""
    reasons = sorted({str(report.longrepr[2]) for report in terminalreporter.stats.get("skipped", [])})
    for reason in reasons:
        terminalreporter.write_sep("!", f"SKIPPED: {reason.removeprefix('Skipped: ')}", red=True)
