"""What the launcher costs: CPU of a plan, and submitting four jobs against four bare sbatch calls.

    python benchmarks/bench_launcher.py

Starts a Slurm of its own in a folder of its own, as the tests do; needs root and Slurm's programs for the second part.
"""

from __future__ import annotations

import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(HOME / "tests"), str(HOME / "tests" / "slurm_cluster")]

from cluster import Cluster, unavailable  # noqa: E402
from test_slurm_dag import copy_project  # noqa: E402

REPEATS = 5
STAGES = ("preprocess", "sft", "grpo", "evaluate")


def call(command: list[str], home: Path, env: dict[str, str]) -> str:
    return subprocess.run(command, cwd=home, env=env, capture_output=True, text=True, check=True).stdout


def plan_cpu_seconds() -> float:
    """User and system seconds of one `plan phi3`."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    call([sys.executable, "-m", "pipeline", "plan", "phi3"], HOME, dict(os.environ))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def launcher_seconds(home: Path, env: dict[str, str], run: str) -> float:
    """Wall seconds of `run smoke --via slurm`; its jobs are cancelled afterwards."""
    python = [".venv/bin/python", "-m", "pipeline"]
    begun = time.perf_counter()
    call([*python, "run", "smoke", "--via", "slurm", "--run-name", run], home, env)
    seconds = time.perf_counter() - begun
    call([*python, "cancel", run], home, env)
    return seconds


def bare_seconds(home: Path, env: dict[str, str], scripts: Path) -> float:
    """Wall seconds of four `sbatch` calls with the same scripts, each after the one before."""
    begun = time.perf_counter()
    jobs: list[str] = []
    for stage in STAGES:
        after = [f"--dependency=afterok:{jobs[-1]}"] if jobs else ["--hold"]
        jobs.append(call(["sbatch", "--parsable", *after, str(scripts / stage / f"{stage}.slurm")], home, env).strip())
    seconds = time.perf_counter() - begun
    call(["scancel", *jobs], home, env)
    return seconds


def submission(home: Path, env: dict[str, str]) -> tuple[list[float], list[float]]:
    """Seconds of the launcher and of bare sbatch, in turns."""
    launcher, bare = [], []
    for repeat in range(REPEATS):
        launcher.append(launcher_seconds(home, env, f"bench{repeat}"))
        bare.append(bare_seconds(home, env, home / "logs" / f"bench{repeat}"))
    return launcher, bare


def main() -> None:
    """Print the figures."""
    seconds = statistics.median(plan_cpu_seconds() for _ in range(REPEATS))
    print(f"plan phi3: {seconds:.2f} s CPU (median of {REPEATS})")
    reason = unavailable()
    if reason:
        sys.exit(f"submission was not measured: {reason}")
    root = Path(tempfile.mkdtemp(prefix="slurm", dir="/tmp"))  # munged refuses folders below private ones
    root.chmod(0o755)
    cluster = Cluster(root)
    try:
        cluster.up()
        home = copy_project(root / "project")
        launcher, bare = map(statistics.median, submission(home, cluster.env))
        print(f"four jobs: launcher {launcher:.2f} s, four bare sbatch calls {bare:.3f} s (medians of {REPEATS})")
        print(f"ratio: {launcher / bare:.1f}; added: {launcher - bare:.2f} s")
    finally:
        cluster.down()
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
