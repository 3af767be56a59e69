"""What the job body does: verify needs, start the stage's processes, record how they end, mark the stage done.

    python -m pipeline.training.launch RUN_LOGS STAGE

Runs under Slurm, submitit and locally alike; imports no torch. Exit codes: 0 done, 1 the stage failed, 2 the user's to
fix, 3 needs missing, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline import dag
from pipeline.dag import Stage
from pipeline.errors import NeedsMissing, PipelineError
from pipeline.recipe import Resources
from pipeline.records import first_difference
from pipeline.run import HOME, RunDir, now
from pipeline.snapshot import check_snapshot
from pipeline.training.own_job import why_stopped

STOPPED = 130


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
    cpus = int(os.environ.get("SLURM_CPUS_PER_TASK") or len(os.sched_getaffinity(0)))
    cpus = min(cpus, len(os.sched_getaffinity(0)))
    defaults = {"OMP_NUM_THREADS": str(max(1, cpus // count)), "OMP_WAIT_POLICY": "PASSIVE"}
    paths = [str(HOME), *filter(None, [os.environ.get("PYTHONPATH")])]
    always = {
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
        "RLC_ATTEMPT_DIR": str(attempt_folder),
        "TOKENIZERS_PARALLELISM": "false",
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
    log = run.attempt_log(name, attempt)
    facts: dict[str, Any] = {"attempt": attempt, "host": os.uname().nodename, "pid": os.getpid(), "reason": ""}
    facts |= {"job": os.environ.get("SLURM_JOB_ID", ""), "started": now(), "ended": None, "exit_code": None}
    run.write_state(name, state="running", **facts)
    print(f"stage {name} of run {run.name}, attempt {attempt}, log {log}", flush=True)
    code, reason = 1, ""
    try:
        check_snapshot()
        verify_needs(run, stages, name)
        run.unmark(name)
        count = processes(recipe.resources[name], gpus_at_hand())
        command = launch_command(stage, run.logs, recipe.resources[name], count)
        code, reason = child.run(command, process_environment(count, log.parent), log)
        if code == 0:
            run.mark_done(name, stage.fingerprint, list(stage.outputs))
    except PipelineError as error:
        code, reason = error.exit_code, str(error)
        print(f"error: {error}", file=sys.stderr, flush=True)
    finally:
        state = {0: "done", STOPPED: "interrupted"}.get(code, "failed")
        stopped = why_stopped() if code == STOPPED else ""
        run.write_state(name, state=state, ended=now(), exit_code=code, reason=reason, slurm=stopped)
    return code


class Child:
    """The stage's processes: their output goes to the log and on to ours, a stop signal goes to all of them.

    Made before anything is recorded, so that no signal finds the job body without a handler.
    """

    def __init__(self) -> None:
        self.stopped_by = ""
        self.process: subprocess.Popen[bytes] | None = None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        signal.signal(signal.SIGUSR1, lambda *_: print("the time limit is near", flush=True))

    def run(self, command: Sequence[str], environment: dict[str, str], log: Path) -> tuple[int, str]:
        """(exit code, reason): 130 when a signal ended it, with the last line of output as reason of a failure."""
        if self.stopped_by:
            return STOPPED, f"stopped by {self.stopped_by}"
        self.process = subprocess.Popen(
            command, env=environment, cwd=HOME, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        if self.stopped_by:  # the signal came while the process was being made
            self._end()
        last_line = self._copy_output(log)
        code = self.process.wait()
        if self.stopped_by:
            return STOPPED, f"stopped by {self.stopped_by}"
        text = last_line.decode(errors="replace")[-300:]
        return (0, "") if code == 0 else (code if code in (2, 3) else 1, text or f"exit code {code}")

    def _copy_output(self, path: Path) -> bytes:
        """Copy the output to the log and to our own until it ends; its last line that is not empty."""
        assert self.process is not None and self.process.stdout is not None
        last_line = b""
        with path.open("ab") as log:
            for line in self.process.stdout:
                log.write(line)
                log.flush()
                sys.stdout.buffer.write(line)
                sys.stdout.buffer.flush()
                last_line = line.strip() or last_line
        return last_line

    def _stop(self, number: int, _: object) -> None:
        self.stopped_by = signal.Signals(number).name
        self._end()

    def _end(self) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGTERM)


def main(logs: str, name: str) -> int:
    """Run a stage of the run whose logs folder is given."""
    try:
        return execute(RunDir.of_logs(Path(logs)), name)
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
