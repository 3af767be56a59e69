"""Fixtures that all tests share: a real Slurm, folders with hostile names, loud skips."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from itertools import count, repeat
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "slurm_cluster"))

from cluster import Cluster, unavailable

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "disabled")

END_STATES = {
    "COMPLETED",
    "FAILED",
    "CANCELLED",
    "TIMEOUT",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "BOOT_FAIL",
    "DEADLINE",
}
NO_SLURM = "no Slurm here: "
"""How the reason begins for which a test of Slurm is skipped."""


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

    def submit(self, *arguments: str, cwd: Path, **env: str) -> str:
        """The id of the job that sbatch makes of these arguments."""
        done = self.run("sbatch", "--parsable", *arguments, cwd=cwd, **env)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def field(self, job: str, name: str) -> str:
        """One field (a word) of `scontrol show job`, such as Reason or Dependency; "" when the job is forgotten."""
        done = self.run("scontrol", "show", "job", "-o", job)
        assert done.returncode == 0 or "Invalid job id" in done.stderr, done.stderr
        return next((word.partition("=")[2] for word in done.stdout.split() if word.startswith(f"{name}=")), "")

    def state(self, job: str) -> str:
        """PENDING, RUNNING, COMPLETED and so on; "" when Slurm has forgotten the job, MinJobAge after its end."""
        return self.field(job, "JobState")

    def wait(self, *jobs: str, seconds: float = 120) -> list[str]:
        """Wait until all jobs have ended; their states."""
        end = time.monotonic() + seconds
        while not all((state := self.state(job)) in END_STATES or not state for job in jobs):
            assert time.monotonic() < end, self.run("squeue").stdout
            time.sleep(0.2)
        return [self.state(job) for job in jobs]

    def wait_for(self, job: str, name: str, value: str, seconds: float = 30) -> None:
        """Wait until a field of a job has this value."""
        end = time.monotonic() + seconds
        while (found := self.field(job, name)) != value:
            assert time.monotonic() < end, f"{name} of job {job} is {found}, not {value}"
            time.sleep(0.1)


@pytest.fixture(scope="session")
def slurm_root() -> Iterator[Path]:
    """A folder in which munged agrees to run: those that pytest makes are private."""
    reason = unavailable()
    if reason:
        pytest.skip(NO_SLURM + reason)
    root = Path(tempfile.mkdtemp(prefix="slurm", dir="/tmp"))
    root.chmod(0o755)
    yield root
    shutil.rmtree(root)


@pytest.fixture(scope="session")
def slurm(slurm_root: Path) -> Iterator[Slurm]:
    """A real Slurm of two nodes, started once."""
    cluster = Cluster(slurm_root / "shared")
    cluster.up()
    yield Slurm(cluster)
    cluster.down()


@pytest.fixture
def weird_tmp_path(tmp_path: Path) -> Path:
    """A folder whose name breaks every unquoted use of it."""
    path = tmp_path / "a 'b\" $c; d"
    path.mkdir()
    return path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Two files of Slurm, which mostly wait, for one that trains, then all others: no long one is left for the end."""
    kinds: dict[Path, str] = {}
    for item in items:
        marks = {mark.name for mark in item.iter_markers()} | {kinds.get(item.path, "")}
        kinds[item.path] = "slurm" if "slurm" in marks else "training" if "training" in marks else ""
    turns = {"slurm": count(step=1), "training": count(step=2), "": repeat(len(kinds) * 2)}
    places = {path: next(turns[kind]) for path, kind in kinds.items()}
    items.sort(key=lambda item: places[item.path])


def pytest_configure() -> None:
    """Make TERM end the tests as ^C does, so that a test session that runs out of time stops its Slurm too."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Iterator[None]:
    """Say loudly, below all summaries, which tests that need Slurm or real data did not run."""
    yield
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = Counter(str(report.longrepr[2]).removeprefix("Skipped: ") for report in skipped)
    for reason, number in sorted(reasons.items()):
        what = f"SLURM TESTS SKIPPED: {reason.removeprefix(NO_SLURM)}" if NO_SLURM in reason else f"SKIPPED: {reason}"
        terminalreporter.write_sep("!", f"{what} ({number})", red=True)
