"""The configuration files of a test cluster, as text."""

from __future__ import annotations

import random
import socket
from collections.abc import Mapping, Sequence

SLURM_CONF = """\
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
AuthType=auth/munge
# A requeued job waits for its credential to expire: 5 s instead of 121.
AuthInfo=socket={root}/munge/socket,cred_expire=5
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
SlurmctldPidFile={root}/state/pid
SlurmdPidFile={root}/spool/%n.pid
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdLogFile={root}/log/%n.log
MailProg=/bin/true
ReturnToService=2
SlurmdTimeout=10
KillWait=5
MinJobAge={min_job_age}
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
EnforcePartLimits=ALL
DefMemPerCPU={memory_per_cpu}
ProctrackType={process_tracking}
TaskPlugin={task_plugin}
JobAcctGatherType=jobacct_gather/linux
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes={gres}
PartitionName=debug Nodes=ALL PriorityTier=10 PreemptMode=OFF Default=YES
PartitionName=preempt Nodes=ALL PriorityTier=1 PreemptMode=REQUEUE GraceTime=10
PartitionName=short Nodes=ALL PriorityTier=10 PreemptMode=OFF MaxTime=1
"""

# The fake GPUs have the device number of /dev/null: denying one to a job would deny it /dev/null.
CGROUP_CONF = """\
CgroupPlugin=cgroup/v1
CgroupMountpoint=/sys/fs/cgroup
ConstrainRAMSpace=yes
ConstrainSwapSpace=no
ConstrainCores=no
ConstrainDevices=no
"""


def slurm_conf(values: Mapping[str, object], names: Sequence[str], size: str, extra: str) -> str:
    """slurm.conf with nodes of one size, on free ports; lines of `extra` replace those of the same key or partition."""
    ports = free_ports(1 + len(names))
    given = {key(line) for line in extra.splitlines()} - {"nodename", ""}
    lines = SLURM_CONF.format(port=ports[0], **values).splitlines()
    nodes = [
        f"NodeName={name} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} {size}"
        for name, port in zip(names, ports[1:], strict=True)
    ]
    return "\n".join([*nodes, *(line for line in lines if key(line) not in given), extra.strip(), ""])


def key(line: str) -> str:
    """The key of a slurm.conf line; with the name, for a partition."""
    name, _, value = line.partition("=")
    word = name.strip().lower()
    return f"{word}={value.split()[0]}" if word == "partitionname" else word


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on at this moment, below the range that outgoing connections use."""
    found: list[int] = []
    for port in random.SystemRandom().sample(range(17000, 32000), 1000):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                found.append(port)
        if len(found) == count:
            return found
    raise OSError("no free ports between 17000 and 32000")
