"""Slurm's commands: sbatch, squeue, scontrol, sacct, scancel; each bounded in time, with errors that can be read."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pipeline.errors import PipelineError, UserError

TIMEOUT = 60.0
"""Seconds that a command that changes something may take."""
LOOK_TIMEOUT = 15.0
"""Seconds that a question may take: its answer is for somebody who waits."""

ENDED = {
    "COMPLETED": "done", "FAILED": "failed", "TIMEOUT": "failed", "OUT_OF_MEMORY": "failed", "NODE_FAIL": "failed",
    "CANCELLED": "cancelled", "PREEMPTED": "interrupted", "BOOT_FAIL": "failed", "DEADLINE": "failed",
}  # fmt: skip
"""Slurm's states of a job that is over, and ours."""
HELD = ("JobHeldUser", "JobHeldAdmin")
LAUNCH_FAILED = "launch_failed_requeued_held"
"""Slurm's reason for holding a job that a node could not start; some versions write it with spaces."""

OF_A_JOB = (
    "SLURM_", "SLURMD_", "SBATCH_", "SRUN_", "SALLOC_", "PMI_", "PMIX_", "OMPI_", "TORCHELASTIC_", "RLC_",
)  # fmt: skip
"""How variables begin that an enclosing job or launcher leaves behind and that would rule the new job."""
OF_A_PROCESS = {
    "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK", "ROLE_NAME",
    "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES",
    "GPU_DEVICE_ORDINAL",
}  # fmt: skip
"""Variables that say which process or GPU of a job one is."""
OF_A_NODE = {"TMPDIR", "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}
"""Variables that a job has for itself: they mean nothing on another node."""
OF_THE_SITE = {
    "SLURM_CONF", "SBATCH_ACCOUNT", "SBATCH_PARTITION", "SBATCH_QOS", "SBATCH_RESERVATION", "SBATCH_CONSTRAINT",
    "SBATCH_CLUSTERS",
}  # fmt: skip
"""Variables that people set once for all their jobs on a site."""


@dataclass(frozen=True)
class QueuedJob:
    """A job as squeue shows it, ended ones too for as long as Slurm remembers them."""

    job: str
    state: str
    reason: str
    elapsed: str
    name: str
    comment: str
    folder: str
    priority: str = ""

    @property
    def ended(self) -> bool:
        """Whether it is over."""
        return self.state in ENDED

    @property
    def over(self) -> bool:
        """Whether it has ended, or does so now."""
        return self.ended or self.state == "COMPLETING"

    @property
    def held(self) -> bool:
        """Whether it waits for somebody to release it; where it waits for other jobs too, only its priority says so."""
        return self.state == "PENDING" and (self.reason in HELD or self.priority == "0")

    @property
    def launch_failed(self) -> bool:
        """Whether Slurm holds it as a node could not start it: it waits until somebody releases it."""
        return self.state == "PENDING" and self.reason.replace(" ", "_") == LAUNCH_FAILED


FIELDS = "%i\x1f%T\x1f%r\x1f%M\x1f%j\x1f%k\x1f%Z\x1f%Q"


def environment() -> dict[str, str]:
    """Ours without what an enclosing job left behind; site variables are kept where no job encloses us."""
    inside = "SLURM_JOB_ID" in os.environ
    kept = {"SLURM_CONF"} if inside else OF_THE_SITE
    dropped = OF_A_PROCESS | (OF_A_NODE if inside else set())
    return {
        key: value
        for key, value in os.environ.items()
        if key in kept or not (key in dropped or key.startswith(OF_A_JOB))
    }


@contextlib.contextmanager
def clean_environment() -> Iterator[None]:
    """Make `environment()` this process's own for a while, for a library that calls sbatch itself."""
    before = dict(os.environ)
    _replace_environment(environment())
    try:
        yield
    finally:
        _replace_environment(before)


def _replace_environment(variables: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(variables)


def call(
    command: Sequence[str], timeout: float = TIMEOUT, variables: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run one Slurm command, with more environment variables when given.

    Raises UserError when the command is not there or does not answer in time.
    """
    try:
        return subprocess.run(
            command, env=environment() | dict(variables or {}), stdin=subprocess.DEVNULL, capture_output=True,
            text=True, errors="replace", timeout=timeout, check=False,
        )  # fmt: skip
    except FileNotFoundError:
        raise UserError("no such command", value=command[0], where="PATH", do="use --via local without Slurm") from None
    except subprocess.TimeoutExpired:
        raise UserError(
            f"Slurm does not answer within {timeout:.0f} s", value=command[0], where="the Slurm controller",
            do="try again later; `squeue --me` shows whether it is back",
        ) from None  # fmt: skip


def has_commands() -> bool:
    """Whether this machine has Slurm's commands."""
    return shutil.which("sbatch") is not None and shutil.which("scontrol") is not None


def is_there() -> bool:
    """Whether a Slurm answers on this machine."""
    if not has_commands():
        return False
    try:
        return call(["scontrol", "ping"], LOOK_TIMEOUT).returncode == 0
    except UserError:
        return False


def queue() -> dict[str, QueuedJob]:
    """All jobs of this user that Slurm knows, by job id. Raises PipelineError when squeue fails or does not answer."""
    done = call(["squeue", "--me", "--noheader", "--states=all", f"--format={FIELDS}"], LOOK_TIMEOUT)
    if done.returncode:
        raise PipelineError(
            "squeue failed", value=done.stderr.strip(), where="the Slurm controller", do="try again later"
        )
    rows = [line.split("\x1f") for line in done.stdout.splitlines()]
    return {row[0]: QueuedJob(*row) for row in rows if len(row) == 8}


def accounted_states(jobs: Sequence[str]) -> dict[str, str]:
    """States from accounting, such as TIMEOUT, by job id; none where there is no accounting or it does not answer."""
    if not jobs or shutil.which("sacct") is None:
        return {}
    try:
        done = call(["sacct", "-X", "-n", "-P", "-o", "JobID,State", "-j", ",".join(jobs)], LOOK_TIMEOUT)
    except UserError:
        return {}
    rows = [line.split("|") for line in done.stdout.splitlines()] if done.returncode == 0 else []
    return {row[0]: row[1].split()[0] for row in rows if len(row) == 2 and row[1]}  # "CANCELLED by 0" is CANCELLED


def cancel(jobs: Sequence[str]) -> None:
    """Cancel jobs, the last submitted first; ended ones are passed over. Raises PipelineError when scancel fails."""
    if jobs:
        done = call(["scancel", *reversed(jobs)])
        if done.returncode and "Invalid job id" not in done.stderr:
            raise PipelineError("scancel failed", value=done.stderr.strip(), where="Slurm", do="try again")


def release(jobs: Sequence[str]) -> None:
    """Let held jobs start. Raises UserError with Slurm's own words."""
    if jobs:
        _change(["scontrol", "release", ",".join(jobs)], jobs[0])


def set_dependency(job: str, dependency: str) -> None:
    """Replace what a waiting job waits for. Raises UserError with Slurm's own words."""
    _change(["scontrol", "update", f"JobId={job}", f"Dependency={dependency}"], job)


def _change(command: Sequence[str], job: str) -> None:
    done = call(command)
    if done.returncode:
        told = " ".join(done.stderr.split())
        raise UserError(f"scontrol {command[1]} failed", value=told, where=f"job {job}", do="run again")


def sbatch(command: Sequence[str], **variables: str) -> str:
    """Submit; the job id. `variables` go into the job's environment. Raises UserError with Slurm's own words."""
    done = call(command, TIMEOUT, variables)
    if done.returncode:
        raise UserError(
            "sbatch refused the job", value=" ".join(done.stderr.split()), where=command[-1],
            do="change resources in the recipe or the site's facts in configs/cluster.yaml; `doctor` names the fix",
        )  # fmt: skip
    return done.stdout.strip().split(";")[0]
