"""What the job body does: verify needs, start the stage's processes, record how they end, requeue or mark done.

    python -m pipeline.training.launch RUN_LOGS STAGE

Runs under Slurm, submitit and locally alike; imports no torch. Exit codes: 0 done, 1 the stage failed, 2 the user's to
fix, 3 needs missing, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from pipeline import dag
from pipeline.dag import Stage
from pipeline.errors import NeedsMissing, PipelineError
from pipeline.recipe import Recipe, Resources
from pipeline.records import first_difference, remove
from pipeline.run import HOME, RunDir, now
from pipeline.snapshot import check_snapshot
from pipeline.training import checkpoints
from pipeline.training.child import Child
from pipeline.training.own_job import why_stopped
from pipeline.training.ranks import cpus_at_hand
from pipeline.training.requeue import progress, refuse_stalling, requeue
from pipeline.training.stop import STOPPED_CODE


def gpus_at_hand() -> int:
    """GPUs that this job was given, or that this machine has."""
    given = os.environ.get("SLURM_GPUS_ON_NODE", "")
    if given.isdigit():
        return int(given)
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return len([word for word in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if word.strip()])
    if shutil.which("nvidia-smi") is None:
        return 0
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return listed.stdout.count("GPU ") if listed.returncode == 0 else 0


def processes(resources: Resources, gpus: int) -> int:
    """How many processes a stage has on one node."""
    if resources.launcher == "none":
        return 1
    return resources.processes or max(1, min(gpus, resources.gpus) or gpus)


def launch_command(stage: Stage, logs: Path, resources: Resources, count: int) -> list[str]:
    """The command line that starts a stage's processes with the launcher of its resources."""
    work = [stage.module, str(logs), stage.name]
    match resources.launcher:
        case "torchrun":
            starter = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", "-m"]
        case "accelerate":
            several = ["--multi_gpu"] if count > 1 else []
            starter = ["-m", "accelerate.commands.launch", *several, f"--num_processes={count}", "--num_machines=1"]
            starter += ["--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0", "-m"]
        case "deepspeed":
            starter = ["-m", "deepspeed.launcher.runner", f"--num_gpus={count}", "--no_local_rank", "--module"]
            starter += [f"--master_port={free_port()}"]
        case _:
            starter = ["-m"]
    return [sys.executable, *starter, *work]


def free_port() -> int:
    """A port that is free here at this moment, below those that outgoing connections take. Raises OSError."""
    for port in random.SystemRandom().sample(range(20000, 32000), 100):
        with socket.socket() as trial, contextlib.suppress(OSError):
            trial.bind(("", port))
            return port
    raise OSError("no free port between 20000 and 32000")


def process_environment(count: int, attempt_folder: Path) -> dict[str, str]:
    """The environment of a stage's processes: threads shared out, output not held back."""
    defaults = {"OMP_NUM_THREADS": str(max(1, cpus_at_hand() // count)), "OMP_WAIT_POLICY": "PASSIVE"}
    paths = [str(HOME), *filter(None, [os.environ.get("PYTHONPATH")])]
    always = {
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
        "RLC_ATTEMPT_DIR": str(attempt_folder),
        "TOKENIZERS_PARALLELISM": "false",
        "PET_SIGNALS_TO_HANDLE": "SIGHUP",  # torchrun and accelerate leave a stop to the ranks, which save first
    }
    return {**defaults, **os.environ, **always}


def verify_needs(run: RunDir, stages: dict[str, Stage], name: str) -> None:
    """Check the markers and the outputs of all that a stage needs. Raises NeedsMissing with what is not there."""
    for need in dag.ancestors(stages, name):
        done = run.done(need)
        if done is None:
            raise NeedsMissing(f"{name} needs {need}, which is not done", where=str(run.stage(need)), do=f"run {need}")
        if done.fingerprint != stages[need].fingerprint:
            raise NeedsMissing(
                f"{name} needs {need} as the recipe is now, but it was done with other settings or code",
                where=str(run.stage(need)), do=f"run {need} again (--replace), or choose a new --run-name",
            )  # fmt: skip
        difference = first_difference(run.root, done.outputs, thorough=True)
        if difference:
            raise NeedsMissing(f"{name} needs {need}: {difference}", where=str(run.root), do=f"run {need} again")


def execute(run: RunDir, name: str) -> int:
    """Run one stage to its end; the exit code of the job."""
    recipe, _ = run.read_resolved()
    stages = dag.build(recipe, run)
    stage = stages[name]
    done = run.done(name)
    if done and done.fingerprint == stage.fingerprint and not first_difference(run.root, done.outputs, thorough=True):
        print(f"{name} is done already", flush=True)
        return 0
    child = Child()
    attempt = run.new_attempt(name)
    job = os.environ.get("SLURM_JOB_ID", "")
    run.write_attempt(name, attempt, job=job, progress=progress(run, stage))
    facts: dict[str, Any] = {"attempt": attempt, "host": os.uname().nodename, "pid": os.getpid(), "reason": ""}
    run.write_state(name, state="running", **facts, job=job, started=now(), ended=None, exit_code=None)
    print(f"stage {name} of run {run.name}, attempt {attempt}, log {run.attempt_log(name, attempt)}", flush=True)
    code, reason = 1, ""
    try:
        check_snapshot()
        verify_needs(run, stages, name)
        code, reason = work(run, recipe, stage, child, attempt)
    except PipelineError as error:
        code, reason = error.exit_code, str(error)
        print(f"error: {error}", file=sys.stderr, flush=True)
    finally:
        before = run.state(name)
        cancelled = code == STOPPED_CODE and before["state"] == "cancelled"
        state = "cancelled" if cancelled else {0: "done", STOPPED_CODE: "interrupted"}.get(code, "failed")
        reason = f"{before['reason']}; {reason}" if cancelled else reason
        stopped = why_stopped() if code == STOPPED_CODE else ""
        peak = round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6, 3)
        facts = {"state": state, "ended": now(), "exit_code": code, "peak_memory_gb": peak}
        run.write_state(name, **facts, reason=reason, slurm=stopped)
    if state == "interrupted" and job and child.stopped_by != signal.SIGINT:
        back_to_the_queue(run, name, job, reason)
    return code


def work(run: RunDir, recipe: Recipe, stage: Stage, child: Child, attempt: int) -> tuple[int, str]:
    """Start the stage's processes and wait for them; (exit code, reason). Marks the stage done when it is.

    Raises StageFailed when the job comes back again and again without getting further, UserError when the checkpoint
    to go on from is of another number of processes.
    """
    resources = recipe.resources[stage.name]
    refuse_stalling(stage.name, run.attempts(stage.name), resources.stalled_requeues)
    run.unmark(stage.name)
    count = processes(resources, gpus_at_hand())
    checkpoints.prepare(run.checkpoints(stage.name), stage.fingerprint, count * resources.nodes)
    log = run.attempt_log(stage.name, attempt)
    command = launch_command(stage, run.logs, resources, count)
    environment = process_environment(count, log.parent)
    code, reason = child.run(command, environment, log, alone=resources.launcher == "none")
    if code == 0:
        run.mark_done(stage.name, stage.fingerprint, list(stage.outputs))
        remove([run.checkpoints(stage.name)])
    return code, reason


def back_to_the_queue(run: RunDir, name: str, job: str, reason: str) -> None:
    """Requeue this job; recorded before, as Slurm ends the job body at once."""
    run.write_state(name, reason=f"{reason}; back to the queue")
    refused = requeue(job)
    if refused:
        run.write_state(name, reason=f"{reason}; not requeued: {refused}")
        print(f"not requeued: {refused}", flush=True)


def main(logs: str, name: str) -> int:
    """Run a stage of the run whose logs folder is given."""
    try:
        return execute(RunDir.of_logs(Path(logs)), name)
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
