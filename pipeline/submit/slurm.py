"""Slurm's commands: sbatch, squeue, scontrol, sacct, scancel; each bounded in time, with errors that can be read."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import PipelineError, UserError
from pipeline.run import HOME, RunDir
from pipeline.submit.plan import Plan, StagePlan

TIMEOUT = 60.0
"""Seconds that a Slurm command may take."""


ENDED = {
    "COMPLETED": "done", "FAILED": "failed", "TIMEOUT": "failed", "OUT_OF_MEMORY": "failed", "NODE_FAIL": "failed",
    "CANCELLED": "cancelled", "PREEMPTED": "cancelled", "BOOT_FAIL": "failed", "DEADLINE": "failed",
}  # fmt: skip
"""Slurm's states of a job that is over, and ours."""


@dataclass(frozen=True)
class QueuedJob:
    """A job as squeue shows it."""

    state: str
    reason: str
    elapsed: str


def has_ended(job: QueuedJob) -> bool:
    """Whether a job that squeue still shows is over."""
    return job.state in ENDED


def environment(**extra: str) -> dict[str, str]:
    """Ours without what an enclosing job left behind: its SLURM_ variables would rule the new job."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_") or k == "SLURM_CONF"}
    return {**kept, **extra}


def call(command: Sequence[str], **extra: str) -> subprocess.CompletedProcess[str]:
    """Run one Slurm command. Raises UserError when it is not there or does not answer in time."""
    try:
        return subprocess.run(
            command, env=environment(**extra), capture_output=True, text=True, timeout=TIMEOUT, check=False
        )
    except FileNotFoundError:
        raise UserError("no such command", value=command[0], where="PATH", do="use --via local without Slurm") from None
    except subprocess.TimeoutExpired:
        raise UserError(
            f"Slurm does not answer within {TIMEOUT:.0f} s", value=command[0], where="the Slurm controller",
            do="try again later; `squeue --me` shows whether it is back",
        ) from None  # fmt: skip


def is_there() -> bool:
    """Whether a Slurm answers on this machine."""
    if shutil.which("sbatch") is None or shutil.which("scontrol") is None:
        return False
    try:
        return call(["scontrol", "ping"]).returncode == 0
    except UserError:
        return False


def queue(jobs: Sequence[str]) -> dict[str, QueuedJob]:
    """Those of the jobs that Slurm still has in its queue, by job id. Raises PipelineError when squeue fails."""
    if not jobs:
        return {}
    done = call(["squeue", "--me", "--noheader", "--states=all", "--format=%i|%T|%r|%M"])
    if done.returncode:
        raise PipelineError(
            "squeue failed", value=done.stderr.strip(), where="the Slurm controller", do="try again later"
        )
    rows = [line.split("|") for line in done.stdout.splitlines()]
    return {row[0]: QueuedJob(row[1], row[2], row[3]) for row in rows if len(row) == 4 and row[0] in jobs}


def accounted_state(job: str) -> str | None:
    """A job's state from accounting, such as TIMEOUT; None where there is no accounting or it knows nothing."""
    if shutil.which("sacct") is None:
        return None
    done = call(["sacct", "-X", "-n", "-P", "-o", "State", "-j", job])
    words = done.stdout.split()
    return words[0] if done.returncode == 0 and words else None


def cancel(jobs: Sequence[str]) -> None:
    """Cancel jobs, the last submitted first; ended ones are passed over. Raises PipelineError when scancel fails."""
    if jobs:
        done = call(["scancel", *reversed(jobs)])
        if done.returncode and "Invalid job id" not in done.stderr:
            raise PipelineError("scancel failed", value=done.stderr.strip(), where="Slurm", do="try again")


def sbatch_command(plan: Plan, each: StagePlan, after: Sequence[str], script: Path) -> list[str]:
    """The sbatch command line of one stage that starts after the jobs `after` have succeeded."""
    comment = f"{plan.run.name}/{each.stage.name}/{each.stage.fingerprint}"
    command = ["sbatch", "--parsable", f"--chdir={HOME}", f"--comment={comment}", *each.flags]
    if plan.run.root != HOME:
        command.append(f"--output={str(plan.run.slurm_output).replace('%', '%%')}/%x_%j.out")
    if after:
        command.append("--dependency=" + ",".join(f"afterok:{job}" for job in after))
    return [*command, str(script)]


def submit(plan: Plan) -> dict[str, str]:
    """Submit the plan's stages as one transaction; job ids by stage.

    The first job is held until all are submitted; when one is refused the others are cancelled. Raises UserError
    with Slurm's own words.
    """
    jobs: dict[str, str] = {}
    released = False
    try:
        for each in plan.to_run:
            after = [jobs[need] for need in each.stage.needs if need in jobs]
            command = sbatch_command(plan, each, after, plan.run.script(each.stage.name))
            command[1:1] = [] if jobs else ["--hold"]
            jobs[each.stage.name] = _sbatch(command, plan.run)
            facts = {
                "job": jobs[each.stage.name],
                "via": "slurm",
                "fingerprint": each.stage.fingerprint,
                "after": after,
            }
            plan.run.write_submission(each.stage.name, **facts)
        release(next(iter(jobs.values())))
        released = True
    finally:
        if not released:
            cancel(list(jobs.values()))
            for stage in jobs:
                plan.run.write_state(stage, state="cancelled", reason="a later stage could not be submitted")
    return jobs


def release(job: str) -> None:
    """Let a held job start. Raises UserError with Slurm's own words."""
    done = call(["scontrol", "release", job])
    if done.returncode:
        raise UserError("scontrol release failed", value=done.stderr.strip(), where=f"job {job}", do="run again")


def _sbatch(command: Sequence[str], run: RunDir) -> str:
    done = call(command, RLC_HOME=str(HOME), RLC_RUN_LOGS=str(run.logs))
    if done.returncode:
        raise UserError(
            "sbatch refused the job", value=" ".join(done.stderr.split()), where=command[-1],
            do="change resources in the recipe or the site's facts in configs/cluster.yaml",
        )  # fmt: skip
    return done.stdout.strip().split(";")[0]
