"""How the processes of a stage are started: torchrun, accelerate, deepspeed or none, on one node or several."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import subprocess
import sys
from pathlib import Path

from pipeline.dag import Stage
from pipeline.errors import UserError
from pipeline.recipe import Resources
from pipeline.run import HOME
from pipeline.training.hub import OFFLINE
from pipeline.training.joined import without_group
from pipeline.training.ranks import cpus_at_hand

DEBUG = {"NCCL_DEBUG": "INFO", "TORCH_DISTRIBUTED_DEBUG": "INFO", "TORCH_NCCL_TRACE_BUFFER_SIZE": "2000"}
"""What tells more of a broken network between the processes. DETAIL would: gloo crashes with it (torch 2.13, CPU)."""


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


def launch_command(stage: Stage, logs: Path, resources: Resources, count: int, *, started: bool = False) -> list[str]:
    """The command line that starts a stage's processes with the launcher of its resources: `count` on each node.

    Of processes that a launcher `started` already, it is that of one. DeepSpeed's own launcher kills the ranks at
    SIGTERM, before they can save; torchrun starts them as well.
    """
    work = [stage.module, str(logs), stage.name]
    if started:
        return [sys.executable, "-m", *work]
    if resources.nodes > 1:
        return _over_nodes(resources, count, work)
    match resources.launcher:
        case "torchrun" | "deepspeed":
            starter = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", "-m"]
        case "accelerate":
            several = ["--multi_gpu"] if count > 1 else []
            starter = ["-m", "accelerate.commands.launch", *several, f"--num_processes={count}", "--num_machines=1"]
            starter += ["--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0", "-m"]
        case _:
            starter = ["-m"]
    return [sys.executable, *starter, *work]


def _over_nodes(resources: Resources, count: int, work: list[str]) -> list[str]:
    """One torchrun a node, started by srun, that meet on a free port of this node, the job's first.

    Whatever the launcher is called: accelerate and deepspeed would need a configuration file or ssh between the nodes,
    and a stage reads its precision, its DeepSpeed configuration and its ranks from elsewhere anyway. A node that ends
    with an error, or is gone, ends all others at once. Raises UserError outside of a job.
    """
    step = ["srun", f"--nodes={resources.nodes}", f"--ntasks={resources.nodes}", "--ntasks-per-node=1"]
    step += [f"--cpus-per-task={resources.cpus}", "--kill-on-bad-exit=1", "--wait=30", "--export=ALL"]
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        raise UserError(
            "a stage over several nodes needs Slurm", value=resources.nodes, where="resources.nodes",
            do="run it with --via slurm, or set nodes: 1",
        )  # fmt: skip
    starter = ["-m", "torch.distributed.run", f"--nnodes={resources.nodes}", f"--nproc-per-node={count}"]
    starter += ["--rdzv-backend=c10d", f"--rdzv-endpoint={socket.gethostname()}:{free_port()}", f"--rdzv-id={job}"]
    starter += ["--max-restarts=0", "-m"]
    return [*step, sys.executable, "-m", "pipeline.training.node", sys.executable, *starter, *work]


def free_port() -> int:
    """A port that is free here at this moment, below those that outgoing connections take. Raises OSError."""
    for port in random.SystemRandom().sample(range(20000, 32000), 100):
        with socket.socket() as trial, contextlib.suppress(OSError):
            trial.bind(("", port))
            return port
    raise OSError("no free port between 20000 and 32000")


ON_CPUS = {
    "GOMP_SPINCOUNT": "10000",  # threads that wait for work sleep soon, and do not sleep between two operations
    "MALLOC_MMAP_THRESHOLD_": str(32 * 1024**2),  # tensors of a step are not given back to the kernel and fetched again
    "MALLOC_TRIM_THRESHOLD_": str(256 * 1024**2),
}
"""What makes small operations on CPUs fast; the first a third, the others a tenth of `tiny`'s time (docs/LOG.md)."""


def process_environment(
    count: int, attempt_folder: Path, *, debug: bool = False, group: bool = False
) -> dict[str, str]:
    """The environment of a stage's processes: threads shared out, output not held back, the hub offline.

    `group` keeps what a launcher set that started the processes already.
    """
    threads = {"OMP_NUM_THREADS": str(max(1, cpus_at_hand() // count)), **ON_CPUS}
    paths = [str(HOME), *filter(None, [os.environ.get("PYTHONPATH")])]
    always = {
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
        "RLC_ATTEMPT_DIR": str(attempt_folder),
        "TOKENIZERS_PARALLELISM": "false",
        "PET_SIGNALS_TO_HANDLE": "SIGHUP",  # torchrun and accelerate leave a stop to the ranks, which save first
    }
    given = os.environ if group else without_group(os.environ)
    return {**threads, **OFFLINE, **given, **always, **(DEBUG if debug else {})}
