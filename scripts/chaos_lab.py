"""A place to break things in: a real Slurm, a copy of the project, a small disk, and eyes on all of it."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(1, str(Path(__file__).resolve().parent.parent / "tests"))
sys.path.insert(2, str(Path(__file__).resolve().parent.parent / "tests" / "slurm_cluster"))

from cluster import Cluster
from processes import living, wait_until
from test_slurm_dag import copy_project

from pipeline.records import file_hash
from pipeline.run import RunDir
from pipeline.training import checkpoints

HOME = Path(__file__).resolve().parent.parent
RECIPE = (
    "data.completions=answer", "sft.max_steps=80", "sft.learning_rate=5e-3", "sft.logging_steps=1",
    "sft.checkpoint.every_steps=8", "grpo.max_steps=24", "grpo.learning_rate=1e-3", "grpo.logging_steps=1",
    "grpo.checkpoint.every_steps=4", "grpo.max_completion_length=8", "grpo.guard=null", "evaluate.max_new_tokens=8",
    "evaluate.batch_size=5",
)  # fmt: skip
"""The smoke recipe, short, but with many checkpoints; without the guard, which would give back what GRPO began with."""
SHAPES = {
    "one process": (),
    "torchrun": ("resources.sft.launcher=torchrun", "resources.sft.processes=2", "sft.micro_batch_size=8"),
}
"""How the sft stage runs. Its weights differ: two processes add up gradients in another order."""
TRAINING = {"sft": 80, "grpo": 24}
"""Stages that train, and their steps."""
STAGES = ("preprocess", "sft", "grpo", "evaluate")
OVER = ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "BOOT_FAIL")
DISK = "64m"
STEP = re.compile(r"^step (\d+)/", re.MULTILINE)


class Lab:
    """One Slurm and one copy of the project; every round is a run of its own in it."""

    def __init__(self, cluster: Cluster, home: Path, disk: Path) -> None:
        self.cluster, self.home, self.disk = cluster, home, disk
        self.env = {**cluster.env, "SBATCH_PARTITION": "preempt", "OMP_NUM_THREADS": "1", "COLUMNS": "200"}

    def start(self, *words: str) -> subprocess.Popen[str]:
        """The command line of the project, at work."""
        return subprocess.Popen(
            [".venv/bin/python", "-m", "pipeline", *words], cwd=self.home, env=self.env, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip

    def call(self, *words: str) -> tuple[int, str]:
        """(exit code, all that it says) of the command line of the project."""
        child = self.start(*words)
        told = child.communicate(timeout=300)[0]
        return child.returncode, told

    def run_words(self, name: str, shape: str) -> list[str]:
        """The words that start a run of a shape; the same words again go on with it."""
        return ["run", "smoke", *RECIPE, *SHAPES[shape], "--run-name", name, "--via", "slurm"]

    def run(self, name: str) -> RunDir:
        """The folder of a run."""
        return RunDir(self.disk, name)

    def states(self, name: str) -> dict[str, dict[str, Any]]:
        """What `status` says, by stage; nothing when it does not answer."""
        done = subprocess.run(
            [".venv/bin/python", "-m", "pipeline", "status", name, "--json"], cwd=self.home, env=self.env,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            return {}
        return {each["stage"]: each for each in json.loads(done.stdout)["stages"]}

    def queue(self, name: str) -> dict[str, tuple[str, str, str, str]] | None:
        """(job, state, reason, node) by stage of the jobs of a run that are not over; None when Slurm is silent."""
        try:
            done = self.cluster.call("squeue", "-h", "--states=all", "-o", "%j|%i|%T|%r|%B")
        except subprocess.TimeoutExpired:
            return None
        if done.returncode:
            return None
        rows = [line.split("|") for line in done.stdout.splitlines()]
        ours = [row for row in rows if row[0].endswith(f"_{name}") and row[2] not in OVER]
        return {row[0].removesuffix(f"_{name}"): (row[1], row[2], row[3], row[4]) for row in ours}

    def resume_nodes(self) -> None:
        """What an administrator does with nodes that Slurm drained, as it does where it took a job for a duplicate."""
        done = self.cluster.call("sinfo", "-h", "-N", "-p", "debug", "-t", "drain", "-o", "%N")
        for node in done.stdout.split():
            self.cluster.call("scontrol", "update", f"NodeName={node}", "State=RESUME")

    def processes(self, name: str) -> dict[int, str]:
        """The command lines of all processes of a run, by process id."""
        found, logs = {}, str(self.run(name).logs)
        for pid in living():
            with suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if f"{logs} " in f"{words} ":
                    found[pid] = words
        return found

    def last_step(self, name: str, stage: str, attempt: int) -> int:
        """The last step that an attempt has logged; 0 before the first."""
        log = self.run(name).attempt_log(stage, attempt)
        steps = STEP.findall(log.read_text(errors="replace")) if log.exists() else []
        return int(steps[-1]) if steps else 0

    def result(self, name: str) -> dict[str, Any]:
        """All that a run ends with that must not depend on what happened to it."""
        run = self.run(name)
        comparison = json.loads(run.comparison.read_text())
        answers = {
            path.stem: hashlib.sha256(b"".join(path.read_bytes().splitlines(keepends=True)[1:])).hexdigest()
            for path in run.prediction_files()
        }
        return {
            "weights": {stage: file_hash(run.model(stage) / "model.safetensors") for stage in TRAINING},
            "evaluation": {key: comparison[key] for key in ("data", "models", "baselines", "differences", "sets")},
            "answers": answers,
            "steps": {
                stage: [line["step"] for line in run.read_metrics(stage) if "loss" in line] for stage in TRAINING
            },
        }

    def attempts(self, name: str) -> dict[str, int]:
        """How often each stage began."""
        return {stage: len(self.run(name).attempts(stage)) for stage in STAGES}

    def lost_steps(self, name: str) -> int:
        """Steps that were trained more than once."""
        lost = 0
        for stage in TRAINING:
            begun = [int(each.get("progress", 0)) for each in self.run(name).attempts(stage)]
            lost += sum(
                max(0, self.last_step(name, stage, number) - after) for number, after in enumerate(begun[1:], 1)
            )
        return lost

    def newest_checkpoint(self, name: str, stage: str) -> Path | None:
        """The folder of the newest checkpoint that has its manifest."""
        found = checkpoints.folders(self.run(name).checkpoints(stage))
        return next((folder for folder in found if (folder / checkpoints.MANIFEST).exists()), None)

    def keep_evidence(self, name: str, target: Path) -> None:
        """Copy the logs of a run, and Slurm's, out of here."""
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(self.run(name).logs, target / "run", ignore=shutil.ignore_patterns("code"), symlinks=True)
        shutil.copytree(self.cluster.root / "log", target / "slurm")
        for path in self.run(name).slurm_output.glob(f"*_{name}_*.out"):
            shutil.copy2(path, target)


@contextmanager
def laboratory() -> Iterator[Lab]:
    """A lab that is taken down to the last process, whatever happens in it."""
    root = Path(tempfile.mkdtemp(prefix="chaos", dir="/tmp"))
    root.chmod(0o755)
    disk, cluster = root / "disk", Cluster(root / "slurm")
    try:
        disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "chaos", str(disk)], check=True)
        home = copy_project(root / "project")
        (home / "configs" / "cluster.yaml").write_text(f"output_root: {disk}\n")
        cluster.up()
        yield Lab(cluster, home, disk)
    finally:
        cluster.down()
        if disk.is_mount():
            wait_until("the disk is free", lambda: not _unmount_fails(disk))
        shutil.rmtree(root)


def _unmount_fails(disk: Path) -> bool:
    time.sleep(0.2)
    return subprocess.run(["umount", str(disk)], capture_output=True, check=False).returncode != 0
