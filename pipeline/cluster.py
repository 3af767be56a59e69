"""The cluster file: one YAML a site that says where a run runs. Site facts stand here and nowhere else."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from pipeline.recipe import Resources, check_time
from pipeline.run import HOME
from pipeline.settings import Positive, Section, read_yaml, validate

CLUSTER_FILE = HOME / "configs" / "cluster.yaml"


CACHES = {
    "HF_HOME": "huggingface",
    "XDG_CACHE_HOME": "",
    "TORCH_HOME": "torch",
    "TORCHINDUCTOR_CACHE_DIR": "torchinductor",
    "TORCH_EXTENSIONS_DIR": "torch_extensions",
    "TRITON_CACHE_DIR": "triton",
    "CUDA_CACHE_PATH": "cuda",
    "VLLM_CACHE_ROOT": "vllm",
    "WANDB_CACHE_DIR": "wandb",
    "WANDB_DATA_DIR": "wandb-data",
    "MPLCONFIGDIR": "matplotlib",
}
"""Variables that lead the caches of libraries away from the home folder, and their folders below `cache`."""


class Gres(Section):
    """How this site calls a GPU in `--gres=NAME[:TYPE]:COUNT`."""

    name: str = "gpu"
    type: str | None = None


class ClusterFile(Section):
    """Facts of one site; every key is explained in configs/cluster.example.yaml."""

    partition: str | None = None
    cpu_partition: str | None = None
    gpu_partition: str | None = None
    max_time: str | None = None
    cpu_max_time: str | None = None
    gpu_max_time: str | None = None
    account: str | None = None
    qos: str | None = None
    gres: Gres = Gres()
    constraint: str | None = None
    memory: Literal["mem", "mem-per-cpu", "none"] = "mem"
    modules: list[str] = Field(default_factory=list)
    environment: dict[str, str] = Field(default_factory=dict)
    scratch: str | None = None
    cache: str | None = None
    caches: dict[str, str] = Field(default_factory=dict)
    output_root: str | None = None
    requeue: bool = True
    kill_on_invalid_dep: bool = False
    sweep_at_once: Positive = 4
    submit_limit: Positive | None = None

    @field_validator("max_time", "cpu_max_time", "gpu_max_time")
    @classmethod
    def _times(cls, value: str | None) -> str | None:
        return value if value is None else check_time(value)

    @field_validator("environment", "caches")
    @classmethod
    def _names(cls, values: dict[str, str]) -> dict[str, str]:
        for name in values:
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                raise ValueError(f"{name!r} is not the name of an environment variable")
            if re.search(r"TOKEN|SECRET|PASSWORD|(API|ACCESS)_?KEY", name, re.IGNORECASE):
                raise ValueError(f"{name} looks like a secret: export it in the shell that submits; jobs inherit it")
        return values


def load_cluster(path: Path = CLUSTER_FILE) -> ClusterFile:
    """The cluster file, or the defaults when there is none. Raises UserErrors for what is wrong in it."""
    return validate(ClusterFile, read_yaml(path), path.name) if path.exists() else ClusterFile()


def output_root(cluster: ClusterFile) -> Path:
    """The folder that runs write under: the site's output_root, else the project."""
    return Path(cluster.output_root).expanduser().resolve() if cluster.output_root else HOME


def environment_script(cluster: ClusterFile) -> str:
    """Shell lines that the job body sources: modules, caches, scratch, variables; each value quoted."""
    lines = ["# Written by the launcher from configs/cluster.yaml; the job body sources it."]
    lines += [f"module load {shlex.quote(module)}" for module in cluster.modules]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in variables(cluster).items()]
    return "\n".join(lines) + "\n"


def variables(cluster: ClusterFile) -> dict[str, str]:
    """The variables of the jobs: temporary files, caches, the site's own; later ones win."""
    scratch = {"TMPDIR": cluster.scratch} if cluster.scratch else {}
    root = Path(cluster.cache).expanduser().resolve() if cluster.cache else None
    caches = {name: str(root / folder) for name, folder in CACHES.items()} if root else {}
    return {**scratch, **caches, **cluster.caches, **cluster.environment}


def sbatch_flags(cluster: ClusterFile, resources: Resources) -> list[str]:
    """The sbatch flags that carry this site's facts for a stage with these resources."""
    partition = (cluster.gpu_partition if resources.gpus else cluster.cpu_partition) or cluster.partition
    flags = [
        f"--{name}={value}"
        for name, value in {
            "partition": partition,
            "account": cluster.account,
            "qos": cluster.qos,
            "constraint": cluster.constraint if resources.gpus else None,
        }.items()
        if value
    ]
    if resources.gpus and (cluster.gres.type or cluster.gres.name != "gpu"):
        words = [cluster.gres.name, cluster.gres.type, str(resources.gpus)]
        flags.append("--gres=" + ":".join(word for word in words if word))
    if cluster.memory == "mem-per-cpu":
        flags.append(f"--mem-per-cpu={memory_per_cpu(resources)}M")
    flags.append("--requeue" if cluster.requeue else "--no-requeue")
    flags += ["--kill-on-invalid-dep=yes"] if cluster.kill_on_invalid_dep else []
    return flags


def max_time(cluster: ClusterFile, resources: Resources) -> str | None:
    """The longest time that a job with these resources may ask for; None where the site sets no limit."""
    return (cluster.gpu_max_time if resources.gpus else cluster.cpu_max_time) or cluster.max_time


def memory_per_cpu(resources: Resources) -> int:
    """A stage's memory divided by its CPUs, in MiB, rounded up."""
    return -(-memory_mb(resources) // resources.cpus)


def memory_mb(resources: Resources) -> int:
    """A stage's memory a node, in MiB."""
    return int(resources.memory[:-1]) * {"M": 1, "G": 1024, "T": 1024**2}[resources.memory[-1]]
