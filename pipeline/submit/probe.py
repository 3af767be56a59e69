"""A one-minute job that looks at compute nodes: Python, torch, GPUs, files, scratch, room, network, all-reduce.

python -m pipeline.submit.probe FOLDER GPUS SCRATCH     on a node: write what was found into FOLDER
"""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from pipeline.cluster import environment_script
from pipeline.records import read_json, remove, write_atomic, write_json
from pipeline.run import HOME
from pipeline.submit import slurm
from pipeline.submit.doctor import FILE, Check
from pipeline.submit.plan import Plan, StagePlan
from pipeline.submit.sbatch import sbatch_lines
from pipeline.submit.why import plain_words

PATIENCE = 300.0
"""Seconds that the login node waits for the probe."""
PACKAGES = ("torch", "transformers", "trl", "peft", "datasets")
HUB = ("huggingface.co", 443)
LEAST_GB = 10
"""Room below which a run is likely to fill the disk."""
REDUCE_SECONDS = 60
SCRIPT = """\
#!/bin/bash
@LINES@
set -euo pipefail
cd "$PROBE_HOME"
set +u
. "$PROBE_FOLDER/environment.sh"
set -u
python=.venv/bin/python
[ -x "$python" ] || python=python3
start=()
[ "$SLURM_JOB_NUM_NODES" = 1 ] || start=(srun --ntasks-per-node=1 --kill-on-bad-exit=0)
"${start[@]}" "$python" -m pipeline.submit.probe "$PROBE_FOLDER" "$PROBE_GPUS" "$PROBE_SCRATCH"
"""


def probe(plan: Plan) -> list[Check]:
    """Submit the probe with the resources of the plan's most demanding stage; what it found, node by node.

    Raises UserError when Slurm refuses it.
    """
    each = max(plan.stages, key=lambda one: _size(plan, one))
    resources = plan.recipe.resources[each.stage.name]
    folder = plan.run.slurm_output / f"doctor-{os.getpid()}-{int(time.time())}"
    write_atomic(folder / "canary", folder.name)
    write_atomic(folder / "environment.sh", environment_script(plan.cluster))
    short = resources.model_copy(update={"time": "00:03:00"})
    lines = [
        line for line in sbatch_lines("doctor", short, memory=plan.cluster.memory == "mem") if "--output" not in line
    ]
    write_atomic(folder / "probe.slurm", SCRIPT.replace("@LINES@", "\n".join(lines)))
    output = str(folder / "output").replace("%", "%%")
    variables = {"PROBE_HOME": str(HOME), "PROBE_FOLDER": str(folder), "PROBE_GPUS": str(resources.gpus)}
    variables["PROBE_SCRATCH"] = plan.cluster.scratch or ""
    command = [
        "sbatch",
        "--parsable",
        f"--chdir={HOME}",
        f"--output={output}",
        *each.flags,
        str(folder / "probe.slurm"),
    ]
    job = slurm.sbatch(command, **variables)
    try:
        checks = _results(folder, job, resources.nodes)
    finally:
        slurm.cancel([job])
    if all(check.good is not False for check in checks):
        remove([folder])
    return checks


def _size(plan: Plan, each: StagePlan) -> tuple[int, int, int]:
    resources = plan.recipe.resources[each.stage.name]
    return resources.nodes, resources.gpus, resources.cpus


def _results(folder: Path, job: str, nodes: int) -> list[Check]:
    """Wait for the files that the nodes write, and read them."""
    end = time.monotonic() + PATIENCE
    state = reason = ""
    while time.monotonic() < end:
        found = sorted(folder.glob("node-*.json"))
        if len(found) == nodes:
            return [Check(**each) for path in found for each in read_json(path)] + [_seen(folder, nodes)]
        queued = slurm.queue().get(job)
        if queued is None or queued.ended:
            break
        state, reason = queued.state, queued.reason
        time.sleep(1)
    else:
        waits = (
            f"the probe waits in the queue: {plain_words(reason)}" if state == "PENDING" else "the probe does not end"
        )
        return [Check("compute node", None, waits, "call doctor again when the site is less busy, or with --no-probe")]
    output = folder / "output"
    told = output.read_text(encoding="utf-8", errors="replace").splitlines()[-3:] if output.exists() else []
    if not output.exists():
        fix = f"set output_root in {FILE} to a folder that login and compute nodes share"
        return [Check("shared files", False, f"the job left nothing in {folder}", fix)]
    fix = f"read {output}; is {HOME} with its .venv to be seen on compute nodes?"
    return [Check("compute node", False, " ".join(told) or "the probe ended without a word", fix)]


def _seen(folder: Path, nodes: int) -> Check:
    seen = len(list(folder.glob("seen-*")))
    fix = "" if seen == nodes else f"set output_root in {FILE} to a folder that login and compute nodes share"
    return Check("shared files, back", seen == nodes, f"{seen} of {nodes} nodes wrote what is seen here", fix)


def look_at_node(folder: Path, gpus: int, scratch: str) -> list[Check]:
    """Everything about the node that this runs on."""
    checks = [check_python(), check_gpus(gpus), check_canary(folder), check_scratch(scratch)]
    checks += [check_room(folder), check_network()]
    if int(os.environ.get("SLURM_JOB_NUM_NODES", "1")) > 1:
        checks.append(check_all_reduce(folder, gpus))
    return checks


def check_python() -> Check:
    """The interpreter and the packages that stages import."""
    missing = [name for name in PACKAGES if not _version(name)]
    version = sys.version.split()[0]
    if missing:
        return Check(
            "Python", False, f"not installed: {', '.join(missing)}", "bash scripts/setup_venv.sh on the login node"
        )
    return Check("Python", True, f"{version}, " + ", ".join(f"{name} {_version(name)}" for name in PACKAGES))


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def check_gpus(wanted: int) -> Check:
    """As many GPUs as were asked for, and a driver and a torch that work together."""
    if not wanted:
        return Check("GPUs", True, "none asked for")
    told = _output(["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"])
    if told is None:
        fix = f"is this a GPU node? set gpu_partition and gres in {FILE}; else tell the site's support the node's name"
        return Check("GPUs", False, f"no NVIDIA driver on {os.uname().nodename}", fix)
    code = "import torch; print(torch.version.cuda, torch.cuda.device_count(), torch.cuda.is_available())"
    words = (_output([sys.executable, "-c", code]) or "None 0 False").split()
    if words[0] == "None":
        return Check("GPUs", False, "torch is built without CUDA", "install the CUDA build of torch into .venv")
    if words[2] != "True":
        fix = f"install a torch built for the driver's CUDA, or add a module with a newer CUDA to modules in {FILE}"
        return Check("GPUs", False, f"torch for CUDA {words[0]} does not work with this driver: {told}", fix)
    good = int(words[1]) == wanted
    fix = "" if good else f"check gres in {FILE}: the job was given other GPUs than it asked for"
    return Check("GPUs", good, f"{words[1]} of {wanted}: {told}", fix)


def _output(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return "; ".join(done.stdout.splitlines()) if done.returncode == 0 else None


def check_canary(folder: Path) -> Check:
    """A file that the login node wrote is here, and one that is written here is seen there."""
    try:
        good = (folder / "canary").read_text(encoding="utf-8") == folder.name
        (folder / f"seen-{_node()}").write_text("x", encoding="utf-8")
    except OSError as error:
        fix = f"set output_root in {FILE} to a folder that login and compute nodes share"
        return Check("shared files", False, str(error), fix)
    return Check(
        "shared files", good, "what the login node wrote is here", "" if good else "the file system lags: try again"
    )


def check_scratch(scratch: str) -> Check:
    """The folder for temporary files can be written."""
    place = scratch or tempfile.gettempdir()
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(bytes(1 << 20))
            file.flush()
    except OSError as error:
        fix = f"set scratch in {FILE} to a folder that exists on compute nodes and is yours, or to null"
        return Check("scratch", False, f"{place}: {error.strerror}", fix)
    return Check("scratch", True, f"{place}, {_free_gb(Path(place))} GB free")


def check_room(folder: Path) -> Check:
    """Room for models and checkpoints where runs write, and the user's quota there."""
    free = _free_gb(folder)
    quota = _output(["quota", "-s", "-w"])
    told = f"{free} GB free under {folder.parent}" + (f"; quota: {quota.split(';')[-1].strip()}" if quota else "")
    return Check(
        "room", free >= LEAST_GB, told, "" if free >= LEAST_GB else f"set output_root in {FILE} to a larger disk"
    )


def _free_gb(folder: Path) -> int:
    return shutil.disk_usage(folder).free // 10**9


def check_network() -> Check:
    """Whether the node reaches the hub. Without it models and data must be in the cache before."""
    try:
        socket.create_connection(HUB, timeout=5).close()
    except OSError:
        return Check("network", True, "no internet: bring models and data into the cache before (HF_HOME)")
    return Check("network", True, f"reaches {HUB[0]}")


def check_all_reduce(folder: Path, gpus: int) -> Check:
    """A sum over all nodes of the job: NCCL with GPUs, gloo without. The first node tells its address by a file."""
    import torch
    import torch.distributed as dist

    rank, world = int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NTASKS"])
    backend = "nccl" if gpus and torch.cuda.is_available() else "gloo"
    limit = datetime.timedelta(seconds=REDUCE_SECONDS)
    try:
        store = _store(folder / "rendezvous.json", rank, world, limit)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=limit)
        value = torch.ones(1, device="cuda" if backend == "nccl" else "cpu") * (rank + 1)
        dist.all_reduce(value)
        dist.destroy_process_group()
    except (RuntimeError, TimeoutError) as error:
        fix = (
            f"name the network that joins the nodes: NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME in environment of {FILE}"
        )
        return Check("all-reduce", False, f"{backend}: {str(error).splitlines()[0][:200]}", fix)
    good = int(value.item()) == world * (world + 1) // 2
    return Check("all-reduce", good, f"{backend} over {world} nodes", "" if good else "tell the site's support")


def _store(file: Path, rank: int, world: int, limit: datetime.timedelta) -> object:
    import torch.distributed as dist

    if rank == 0:
        store = dist.TCPStore("0.0.0.0", 0, world, is_master=True, timeout=limit, wait_for_workers=False)
        write_json(file, {"host": os.uname().nodename, "port": store.port})
        return store
    end = time.monotonic() + limit.total_seconds()
    while (found := read_json(file)) is None:
        if time.monotonic() > end:
            raise TimeoutError("the first node did not tell its address")
        time.sleep(0.2)
    return dist.TCPStore(found["host"], found["port"], world, is_master=False, timeout=limit)


def _node() -> str:
    return os.environ.get("SLURM_NODEID", "0")


def main(folder: Path, gpus: int, scratch: str) -> None:
    """Write what this node is like."""
    name = os.environ.get("SLURMD_NODENAME", os.uname().nodename)
    checks = look_at_node(folder, gpus, scratch)
    write_json(folder / f"node-{_node()}.json", [{**asdict(each), "name": f"{name}: {each.name}"} for each in checks])


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
