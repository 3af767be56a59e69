"""Does this site take this plan: the cluster file and every planned stage, each failure with the fix for it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.cluster import ClusterFile, memory_mb
from pipeline.recipe import Resources
from pipeline.submit import slurm
from pipeline.submit.discover import Partition, Site, minutes
from pipeline.submit.plan import Plan, StagePlan
from pipeline.submit.segments import asked
from pipeline.submit.site_file import account_for, clock, describe, gpu_name, usable

FILE = "configs/cluster.yaml"
MESSAGES = (
    (r"invalid account|account/partition", "set account in {file} to one of yours: {accounts}"),
    (r"invalid partition", "set partition in {file} to one of: {partitions}"),
    (r"invalid qos|qos specification", "set qos in {file} to one of yours: {qos}"),
    (r"time limit", "lower resources.{stage}.time, or set a partition with a longer limit in {file}"),
    (r"memory specification|memory required", "lower resources.{stage}.memory, or set memory in {file} to mem-per-cpu"),
    (r"generic resource|\bgres\b", "set gres.name and gres.type in {file} to what is here: {gres}"),
    (r"invalid feature", "set constraint in {file} to a feature that nodes have, or to null"),
    (r"node count|nodes requested", "lower resources.{stage}.nodes"),
    (r"cpu count|more processors", "lower resources.{stage}.cpus"),
    (r"submit limit|job violates", "over a limit of your account or QOS: wait, or set another qos in {file}"),
    (r"group not permitted", "your group may not use this partition: set another in {file}: {partitions}"),
    (r"not available now|inactive|down", "the partition is not up: set another in {file}: {partitions}"),
    (r"node configuration", "no node has all that resources.{stage} asks for: {partitions}"),
)  # fmt: skip
"""What sbatch says when it refuses -> the fix, where the facts of the site do not tell a more exact one."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. `good` is None where it could not be known; `fix` is empty when all is well."""

    name: str
    good: bool | None
    told: str
    fix: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        return asdict(self)


def check_file(site: Site, cluster: ClusterFile) -> list[Check]:
    """The names in the cluster file: do they exist here, are they up, are they this user's."""
    checks = []
    names = [each.name for each in site.partitions]
    for key in ("partition", "cpu_partition", "gpu_partition"):
        name = getattr(cluster, key)
        if name and name not in names:
            checks.append(
                Check(key, False, f"no partition {name} here", f"set {key} in {FILE} to one of: {_listed(names)}")
            )
        elif name and (found := site.partition(name)) and not found.up:
            up = _listed([each.name for each in usable(site)])
            checks.append(Check(key, False, f"partition {name} is not up", f"set {key} in {FILE} to one of: {up}"))
    if not (cluster.partition or site.partition(None) or (cluster.cpu_partition and cluster.gpu_partition)):
        fix = f"set partition in {FILE} to one of: {_listed(names)}"
        checks.append(Check("partition", False, "the site has no default partition", fix))
    for key, mine in (("account", site.accounts), ("qos", site.qos)):
        name = getattr(cluster, key)
        if name and mine and name not in mine:
            checks.append(Check(key, False, f"{name} is not yours", f"set {key} in {FILE} to one of: {_listed(mine)}"))
    return checks or [Check("cluster file", True, "partitions, account and QOS are there")]


def check_stages(site: Site, plan: Plan) -> list[Check]:
    """Every stage of a plan, as `sbatch --test-only` sees it."""
    return [check_stage(site, plan, each) for each in plan.stages]


def check_stage(site: Site, plan: Plan, each: StagePlan) -> Check:
    """Whether Slurm would take the job of a stage; if not, what in the recipe or the cluster file to change."""
    name = each.stage.name
    command = ["sbatch", "--test-only", *_script_flags(each.script), *each.flags, "--wrap", "true"]
    done = slurm.call(command, slurm.LOOK_TIMEOUT)
    told = " ".join(done.stderr.split()).removeprefix("sbatch: ").removeprefix("error: ")
    resources = asked(plan.cluster, plan.recipe.resources[name])
    where = _partition_of(site, plan.cluster, resources)
    wrong = complaints(site, plan.cluster, where, resources, name) if where else []
    if done.returncode == 0:
        start = re.search(r"to start at (\S+)", told)
        return Check(f"stage {name}", True, f"would start at {start[1]}" if start else "would be taken")
    exact = [_better(site, plan.cluster, resources, name), *wrong] if wrong else []
    fix = "; or ".join(filter(None, exact)) or general_fix(site, told, name)
    return Check(f"stage {name}", False, told.removeprefix("allocation failure: "), fix)


def _script_flags(script: str) -> list[str]:
    """The #SBATCH options of a script that ask for resources."""
    asked = [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH ")]
    return [flag for flag in asked if not flag.startswith(("--output", "--open-mode", "--job-name"))]


def _partition_of(site: Site, cluster: ClusterFile, resources: Resources) -> Partition | None:
    name = (cluster.gpu_partition if resources.gpus else cluster.cpu_partition) or cluster.partition
    return site.partition(name)


def complaints(site: Site, cluster: ClusterFile, where: Partition, resources: Resources, stage: str) -> list[str]:
    """What keeps a stage out of a partition, each as the change that would mend it."""
    section = f"resources.{stage}"
    largest = max(where.nodes, key=lambda kind: (kind.cpus, kind.memory), default=None)
    found = [f"partition {where.name} is not up"] if not where.up else []
    if where.max_minutes and (minutes(resources.time) or 0) > where.max_minutes:
        found.append(f"set {section}.time to at most {clock(where.max_minutes)} ({where.name} allows no more)")
    if where.max_nodes and resources.nodes > where.max_nodes:
        found.append(f"set {section}.nodes to at most {where.max_nodes}")
    cpus = min(filter(None, (where.max_cpus, largest.cpus if largest else None)), default=None)
    if cpus and resources.cpus > cpus:
        found.append(f"set {section}.cpus to at most {cpus}")
    found += _memory_complaints(where, resources, section)
    found += _gpu_complaints(site, cluster, where, resources, section) if resources.gpus else []
    if where.accounts and cluster.account not in where.accounts:
        found.append(f"set account in {FILE} to one of: {_listed(where.accounts)}")
    if where.qos and cluster.qos not in where.qos:
        found.append(f"set qos in {FILE} to one of: {_listed(where.qos)}")
    return found


def _memory_complaints(where: Partition, resources: Resources, section: str) -> list[str]:
    node = max((kind.memory for kind in where.nodes), default=None)
    most = min(filter(None, (where.max_memory_node, node)), default=None)
    asked = memory_mb(resources)
    if most and asked > most:
        return [f"set {section}.memory to at most {most}M"]
    if where.max_memory_cpu and asked > where.max_memory_cpu * resources.cpus:
        return [f"set {section}.cpus to at least {-(-asked // where.max_memory_cpu)} ({where.max_memory_cpu}M a CPU)"]
    return []


def _gpu_complaints(
    site: Site, cluster: ClusterFile, where: Partition, resources: Resources, section: str
) -> list[str]:
    here = {which: count for which, count in where.gres().items() if which[0] == cluster.gres.name}
    if not here:
        others = [each.name for each in usable(site) if any(name == gpu_name(site) for name, _ in each.gres())]
        if gpu_name(site) != cluster.gres.name and others:
            return [f"set gres.name in {FILE} to {gpu_name(site)}"]
        return [f"set gpu_partition in {FILE} to one of: {_listed(others)}" if others else "no node here has a GPU"]
    if cluster.gres.type and (cluster.gres.name, cluster.gres.type) not in here:
        types = [kind or "null" for _, kind in here]
        return [f"set gres.type in {FILE} to one of: {_listed(types)}"]
    most = max(count for (_, kind), count in here.items() if cluster.gres.type in (None, kind))
    return [f"set {section}.gpus to at most {most}"] if resources.gpus > most else []


def _better(site: Site, cluster: ClusterFile, resources: Resources, stage: str) -> str:
    """Another partition that takes the stage as it is, as the change that leads there; empty when there is none."""
    for each in usable(site):
        account = account_for(site, each)
        trial = cluster.model_copy(update={"account": account}) if isinstance(account, str) else cluster
        if not complaints(site, trial, each, resources, stage):
            key = "gpu_partition" if resources.gpus else "cpu_partition"
            more = f" and account to {account}" if isinstance(account, str) and account != cluster.account else ""
            return f"set {key} in {FILE} to {each.name}{more}"
    return ""


def general_fix(site: Site, told: str, stage: str) -> str:
    """The fix by sbatch's own words."""
    facts = {
        "file": FILE,
        "stage": stage,
        "accounts": _listed(site.accounts),
        "qos": _listed(site.qos),
        "partitions": " | ".join(describe(each) for each in site.partitions),
        "gres": _listed([":".join(filter(None, which)) for each in site.partitions for which in each.gres()]),
    }
    fix = next((fix for pattern, fix in MESSAGES if re.search(pattern, told, re.IGNORECASE)), "")
    return fix.format(**facts) or "ask the site's support what this means"


def _listed(words: Sequence[str]) -> str:
    return ", ".join(dict.fromkeys(words)) or "none that Slurm tells"
