"""configs/cluster.yaml for a site as it was discovered: what to choose, and the comments that say why."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.cluster import ClusterFile
from pipeline.submit.discover import Partition, Site, as_json_text, least


def usable(site: Site) -> list[Partition]:
    """The partitions that this user's jobs may go to, best first: the default, not preempted, the longest time."""
    able = [each for each in site.partitions if each.up and each.nodes and account_for(site, each) is not False]
    return sorted(able, key=lambda p: (not p.default, p.preemptible, -(p.max_minutes or 10**9)))


def account_for(site: Site, partition: Partition) -> str | bool | None:
    """An account to name for a partition; None where none need be named, False where this user has none for it."""
    if not partition.accounts:
        return None
    own = [account for account in site.accounts if account in partition.accounts]
    if own:
        return own[0]
    return False if site.accounts else partition.accounts[0]


def has_gpus(site: Site, partition: Partition) -> bool:
    """Whether nodes of a partition have generic resources that may be GPUs."""
    return any(name == gpu_name(site) for name, _ in partition.gres())


def gpu_name(site: Site) -> str:
    """How the site calls a GPU: gpu where it has that, else its first generic resource that nodes have."""
    names = [name for each in site.partitions for name, _ in each.gres()]
    return "gpu" if "gpu" in names or not names else names[0]


def choose(site: Site) -> dict[str, str | None]:
    """partition, cpu_partition, gpu_partition, account, qos for the cluster file; None is the site's default."""
    best = usable(site)
    default = next((each for each in best if each.default), None)
    gpu = _longest([each for each in best if has_gpus(site, each)])
    cpu = _longest([each for each in best if not has_gpus(site, each)]) or _longest(best)
    chosen: dict[str, str | None] = {"partition": None, "cpu_partition": None, "gpu_partition": None}
    if cpu and cpu is not default:
        chosen["cpu_partition"] = cpu.name
    if gpu and gpu is not default:
        chosen["gpu_partition"] = gpu.name
    if gpu and cpu and gpu is cpu and gpu is not default:
        chosen = {"partition": gpu.name, "cpu_partition": None, "gpu_partition": None}
    used = [each for each in (gpu, cpu) if each]
    accounts = [account for each in used if isinstance(account := account_for(site, each), str)]
    needed = "associations" in site.config.get("AccountingStorageEnforce", "")
    account = next(iter(accounts), site.accounts[0] if needed and site.accounts else None)
    qos = next((name for each in used if each.qos for name in [*_own(site.qos, each.qos), *each.qos]), None)
    return {**chosen, "account": account, "qos": qos}


def _longest(partitions: Sequence[Partition]) -> Partition | None:
    """The first partition, unless its jobs may last less than a day and another's may last longer."""
    if not partitions:
        return None
    first = partitions[0]
    if first.max_minutes is None or first.max_minutes >= 1440:
        return first
    most = {p.name: p.max_minutes or 10**9 for p in partitions}
    return max(partitions, key=lambda p: (most[p.name] >= 1440, not p.preemptible, most[p.name]))


def _own(mine: Sequence[str], allowed: Sequence[str]) -> list[str]:
    return [name for name in mine if name in allowed]


def job_limits(site: Site, qos: str | None) -> tuple[int | None, int | None]:
    """Jobs of this user that may run, and be in the queue, at once, with a QOS or the default one; None: no limit."""
    used = qos or next(iter(site.qos), "")
    own, of_qos = (site.job_limits.get(name, (None, None)) for name in ("", used))
    return least(own[0], of_qos[0]), least(own[1], of_qos[1])


def describe(partition: Partition) -> str:
    """A partition in one line."""
    sizes = sorted({(kind.cpus, kind.memory // 1024) for kind in partition.nodes})
    gpus = ", ".join(f"{count} x {':'.join(filter(None, which))}" for which, count in partition.gres().items())
    words = [
        f"{sum(kind.count for kind in partition.nodes)} nodes of "
        + " or ".join(f"{cpus} CPUs, {memory} GB" for cpus, memory in sizes),
        gpus or "no GPUs",
        f"at most {clock(partition.max_minutes)}" if partition.max_minutes else "no time limit",
    ]
    words += ["the default"] if partition.default else []
    words += ["not up"] if not partition.up else []
    words += ["preemptible"] if partition.preemptible else []
    words += [f"only accounts {', '.join(partition.accounts)}"] if partition.accounts else []
    words += [f"only QOS {', '.join(partition.qos)}"] if partition.qos else []
    return f"{partition.name}: {'; '.join(words)}"


def clock(minutes: int) -> str:
    """Minutes as D-HH:MM:SS."""
    days, rest = divmod(minutes, 1440)
    return (f"{days}-" if days else "") + f"{rest // 60:02d}:{rest % 60:02d}:00"


def cluster_file_text(site: Site) -> str:
    """The YAML text of a cluster file for this site, with comments that tell what was found."""
    chosen = choose(site)
    config = site.config
    types = sorted({kind for each in site.partitions for name, kind in each.gres() if name == gpu_name(site) and kind})
    features = sorted({feature for each in site.partitions for kind in each.nodes for feature in kind.features})
    keeps = "slurmdbd keeps it (sacct)" if site.accounting else "not kept: ended jobs are forgotten"
    default_requeue = (
        "jobs may be requeued" if config.get("JobRequeue") == "1" else "off unless a job asks for it; ours do"
    )
    found = [
        f"Slurm {config.get('SLURM_VERSION', '?')}, cluster {config.get('ClusterName', '?')}",
        f"history of jobs: {keeps}; an ended job is known for {config.get('MinJobAge', '?')}",
        f"requeue: {default_requeue}; preemption: {config.get('PreemptType', '?')}, {config.get('PreemptMode', '?')}",
        f"limits: {config.get('MaxJobCount', '?')} jobs in all, arrays up to {config.get('MaxArraySize', '?')}",
        *(describe(each) for each in site.partitions),
    ]
    lines = ["# Written by `init` from what Slurm says of this site; yours to change. `doctor` checks it."]
    lines += [f"#   {line}" for line in found] + [""]

    def key(name: str, value: object, comment: str) -> None:
        lines.append(f"{name + ': ' + as_json_text(value):<32} # {comment}")

    key("partition", chosen["partition"], "partition of all jobs; null: the site's default")
    key("cpu_partition", chosen["cpu_partition"], "instead, for jobs without GPUs")
    key("gpu_partition", chosen["gpu_partition"], "instead, for jobs with GPUs")
    key("max_time", None, "the longest time that a job may ask for, in this partition; null: no limit")
    key("cpu_max_time", _max_time(site, chosen["cpu_partition"] or chosen["partition"]), "instead, without GPUs")
    key("gpu_max_time", _max_time(site, chosen["gpu_partition"] or chosen["partition"]), "instead, with GPUs")
    key("account", chosen["account"], f"yours: {', '.join(site.accounts) or 'none that Slurm tells'}")
    key("qos", chosen["qos"], f"yours: {', '.join(site.qos) or 'none that Slurm tells'}")
    key("gres", {"name": gpu_name(site), "type": None}, f"types here: {', '.join(types) or 'none named'}")
    key("constraint", None, f"features here: {', '.join(features) or 'none'}")
    key("memory", site.memory, "how memory may be asked for here, as tried: mem, mem-per-cpu or none")
    key("modules", [], "environment modules that a job loads first")
    key("environment", {}, "more variables of the jobs; secrets do not belong here")
    key("scratch", site.scratch, "temporary files (TMPDIR) on the compute nodes; `doctor` writes there")
    key("cache", _cache(site), "caches of all libraries, off the home quota; `prefetch` fills it")
    key("output_root", None, "data, logs, models and results go under this folder; null: the project")
    key("requeue", True, default_requeue)
    key("kill_on_invalid_dep", False, "true: Slurm cancels the dependents of a failed stage")
    most, queued = job_limits(site, chosen["qos"])
    told = f"{most} jobs of yours may run" if most else "no limit on your running jobs that Slurm tells"
    key("sweep_at_once", most or ClusterFile().sweep_at_once, f"trials of a sweep at work at once; {told}")
    key("submit_limit", queued, "jobs that you may have in the queue; null: no limit that Slurm tells")
    return "\n".join(lines) + "\n"


def _max_time(site: Site, partition: str | None) -> str | None:
    where = site.partition(partition)
    return clock(where.max_minutes) if where and where.max_minutes else None


def _cache(site: Site) -> str | None:
    return f"{site.scratch}/cache" if site.scratch else None
