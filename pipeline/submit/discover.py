"""What a site offers: partitions, limits, GPUs, accounts, policies, asked of Slurm itself; as a cluster file."""

from __future__ import annotations

import getpass
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipeline.errors import PipelineError
from pipeline.submit import slurm

UNLIMITED = ("UNLIMITED", "infinite", "NONE", "n/a", "N/A", "(null)", "")


@dataclass(frozen=True)
class NodeKind:
    """Nodes of one partition that are alike. `gres` counts by (name, type or empty), a node; memory in MB, a node."""

    count: int
    cpus: int
    memory: int
    gres: dict[tuple[str, str], int]
    features: tuple[str, ...]


@dataclass(frozen=True)
class Partition:
    """One partition and its limits; None is no limit. Times in minutes, memory in MB; no accounts are all accounts."""

    name: str
    default: bool
    up: bool
    max_minutes: int | None
    max_nodes: int | None
    max_cpus: int | None
    max_memory_node: int | None
    max_memory_cpu: int | None
    accounts: tuple[str, ...]
    qos: tuple[str, ...]
    preemptible: bool
    nodes: tuple[NodeKind, ...]

    def gres(self) -> dict[tuple[str, str], int]:
        """The most of each generic resource that one node has."""
        found: dict[tuple[str, str], int] = {}
        for kind in self.nodes:
            for which, count in kind.gres.items():
                found[which] = max(count, found.get(which, 0))
        return found


@dataclass(frozen=True)
class Site:
    """A site. `accounts` and `qos` are this user's, the default first; empty where there is no accounting."""

    partitions: tuple[Partition, ...]
    config: dict[str, str]
    accounts: tuple[str, ...] = ()
    qos: tuple[str, ...] = ()
    scratch: str | None = None
    memory: str = "mem"
    gres_names: tuple[str, ...] = field(default=("gpu",))
    job_limits: dict[str, tuple[int | None, int | None]] = field(default_factory=dict)
    """Jobs of this user that may run, and be queued, at once: of the account (""), of each QOS; None is no limit."""

    @property
    def accounting(self) -> bool:
        """Whether the history of jobs is kept: sacct answers."""
        return "slurmdbd" in self.config.get("AccountingStorageType", "")

    def partition(self, name: str | None) -> Partition | None:
        """A partition by name, by default the site's default."""
        return next((each for each in self.partitions if (each.name == name if name else each.default)), None)


def discover() -> Site:
    """Ask Slurm what the site offers. Raises PipelineError when it does not answer."""
    config = dict(re.findall(r"^(\S+)\s*= (.*?)\s*$", _ask("scontrol", "show", "config"), re.MULTILINE))
    shown = [
        dict(re.findall(r"(\w+)=(\S*)", line)) for line in _ask("scontrol", "show", "partition", "-o").splitlines()
    ]
    nodes = _nodes(_ask("sinfo", "--noheader", "--noconvert", "--format=%R\x1f%D\x1f%c\x1f%m\x1f%G\x1f%f"))
    top = max((int(facts.get("PriorityTier", 1)) for facts in shown), default=1)
    partitions = tuple(_partition(facts, config, nodes, top) for facts in shown if "PartitionName" in facts)
    accounts, qos = _associations() if "slurmdbd" in config.get("AccountingStorageType", "") else ((), ())
    names = tuple(word for word in config.get("GresTypes", "").split(",") if word not in UNLIMITED)
    enforced = re.search("limits|safe", config.get("AccountingStorageEnforce", ""))
    limits = _job_limits() if enforced else {}
    site = Site(partitions, config, accounts, qos, scratch_folder(), "mem", names, limits)
    return replace(site, memory=_memory_policy(site))


def _ask(*command: str) -> str:
    done = slurm.call(command, slurm.LOOK_TIMEOUT)
    if done.returncode:
        raise PipelineError(
            f"{command[0]} failed", value=" ".join(done.stderr.split()), where="Slurm", do="try again later"
        )
    return done.stdout


def _nodes(text: str) -> dict[str, list[NodeKind]]:
    found: dict[str, list[NodeKind]] = {}
    for line in text.splitlines():
        partition, count, cpus, memory, gres, features = line.split("\x1f")
        kind = NodeKind(
            int(count), int(cpus.rstrip("+")), int(memory.rstrip("+")), parse_gres(gres),
            tuple(word for word in features.split(",") if word not in UNLIMITED),
        )  # fmt: skip
        found.setdefault(partition, []).append(kind)
    return found


def parse_gres(text: str) -> dict[tuple[str, str], int]:
    """`gpu:a100:8(S:0-1),card:2` as counts by (name, type); sockets in parentheses are left out."""
    found: dict[tuple[str, str], int] = {}
    for word in re.sub(r"\([^)]*\)", "", text).split(","):
        parts = word.split(":")
        if word not in UNLIMITED and parts[-1].isdigit():
            which = (parts[0], parts[1] if len(parts) == 3 else "")
            found[which] = found.get(which, 0) + int(parts[-1])
    return found


def _partition(facts: dict[str, str], config: dict[str, str], nodes: dict[str, list[NodeKind]], top: int) -> Partition:
    """`top` is the highest priority of a partition here: its jobs are the ones that nobody preempts."""
    name = facts["PartitionName"]
    mode = facts.get("PreemptMode", "OFF")
    return Partition(
        name=name,
        default=facts.get("Default") == "YES",
        up=facts.get("State", "UP") == "UP",
        max_minutes=minutes(facts.get("MaxTime", "")),
        max_nodes=_number(facts.get("MaxNodes", "")),
        max_cpus=_number(facts.get("MaxCPUsPerNode", "")),
        max_memory_node=_number(facts.get("MaxMemPerNode", "")) or _number(config.get("MaxMemPerNode", "")),
        max_memory_cpu=_number(facts.get("MaxMemPerCPU", "")) or _number(config.get("MaxMemPerCPU", "")),
        accounts=_names(facts.get("AllowAccounts", "ALL")),
        qos=_names(facts.get("AllowQos", "ALL")),
        preemptible=(
            mode not in ("OFF", "N/A")
            and "partition_prio" in config.get("PreemptType", "")
            and int(facts.get("PriorityTier", 1)) < top
        ),
        nodes=tuple(nodes.get(name, ())),
    )


def _names(text: str) -> tuple[str, ...]:
    return () if text == "ALL" or text in UNLIMITED else tuple(text.split(","))


def _number(text: str) -> int | None:
    return int(text) if text.isdigit() and int(text) > 0 else None


def minutes(text: str) -> int | None:
    """Slurm's D-HH:MM:SS in minutes, rounded up; None for no limit."""
    if text in UNLIMITED:
        return None
    days, _, clock = text.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    hours, rest, seconds = ([0, *parts] if len(parts) == 2 and not days else [*parts, 0, 0])[:3]
    return int(days or 0) * 1440 + hours * 60 + rest + (1 if seconds else 0)


def _associations() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """This user's accounts and QOS, defaults first: where no QOS is named as the default, Slurm takes normal."""
    user = getpass.getuser()
    default = slurm.call(["sacctmgr", "-nP", "show", "user", user, "format=DefaultAccount"], slurm.LOOK_TIMEOUT)
    shown = slurm.call(
        ["sacctmgr", "-nP", "show", "assoc", f"user={user}", "format=Account,DefaultQOS,QOS"], slurm.LOOK_TIMEOUT
    )
    rows = [line.split("|") for line in shown.stdout.splitlines() if line.count("|") == 2]
    accounts = [*default.stdout.split()[:1], *(row[0] for row in rows)]
    listed = [word for row in rows for word in row[2].split(",")]
    qos = [*(row[1] for row in rows), *(word for word in listed if word == "normal"), *listed]
    return _unique(accounts), _unique(qos)


def _job_limits() -> dict[str, tuple[int | None, int | None]]:
    """Limits of this user's associations under "", of every QOS under its name."""
    user = ["show", "assoc", f"user={getpass.getuser()}", "format=MaxJobs,MaxSubmitJobs"]
    own = slurm.call(["sacctmgr", "-nP", *user], slurm.LOOK_TIMEOUT).stdout.splitlines()
    qos = slurm.call(
        ["sacctmgr", "-nP", "show", "qos", "format=Name,MaxJobsPerUser,MaxSubmitJobsPerUser"], slurm.LOOK_TIMEOUT
    )
    found: dict[str, tuple[int | None, int | None]] = {}
    for line in [*(f"|{line}" for line in own), *qos.stdout.splitlines()]:
        name, most, queued = line.split("|")
        before = found.get(name, (None, None))
        found[name] = least(before[0], _number(most)), least(before[1], _number(queued))
    return found


def least(*limits: int | None) -> int | None:
    """The strictest of several limits; None is no limit."""
    return min((limit for limit in limits if limit is not None), default=None)


def _unique(words: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word for word in words if word))


def _memory_policy(site: Site) -> str:
    """How memory may be asked for here, by trying it on the partition that jobs would go to: mem, mem-per-cpu, none."""
    where = site.partition(None) or next(iter(site.partitions), None)
    base = ["sbatch", "--test-only", "--time=1", "--ntasks=1", *([f"--partition={where.name}"] if where else [])]
    refused = {}
    for policy, flags in (("mem", ["--mem=100M"]), ("mem-per-cpu", ["--mem-per-cpu=100M"]), ("none", [])):
        done = slurm.call([*base, *flags, "--wrap", "true"], slurm.LOOK_TIMEOUT)
        refused[policy] = done.returncode
        if done.returncode == 0:
            return policy
    return "mem"  # refused for another reason, which `doctor` names


def scratch_folder() -> str | None:
    """A folder for temporary files that this site names, seen from here: $SCRATCH, $WORK, /scratch/USER."""
    user = getpass.getuser()
    named = [os.environ.get(name) for name in ("SCRATCH", "WORK", "WORKDIR")]
    usual = [f"/{parent}/{user}" for parent in ("scratch", "scratch/users", "work")]
    for folder in [*named, *usual]:
        if folder and Path(folder).is_dir() and os.access(folder, os.W_OK):
            return folder
    return None


def as_json_text(value: object) -> str:
    """A value as YAML reads it back: JSON is YAML."""
    return json.dumps(value, ensure_ascii=False)
