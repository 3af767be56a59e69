"""A real Slurm in one folder, for this machine only: munged, slurmctld and two slurmd on loopback, no systemd.

    python tests/slurm_cluster/cluster.py up ROOT      start, then: export SLURM_CONF=ROOT/slurm.conf
    python tests/slurm_cluster/cluster.py down ROOT    stop it and everything that it started

The nodes have invented sizes, so that any recipe's resources can be asked for; nothing enforces memory. ROOT must be
a plain path whose folders belong to root and are not writable by others (munged insists).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "scontrol", "squeue", "scancel", "setpriv")
SBIN = "/usr/sbin"
MARK = "SLURM_TEST_ROOT"
"""Stands in the environment of every daemon and job step of a cluster: how the last processes are found."""

CONFIGURATION = """\
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
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
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
EnforcePartLimits=ALL
DefMemPerCPU=1000
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
PartitionName=debug Nodes=ALL PriorityTier=10 PreemptMode=OFF Default=YES
PartitionName=preempt Nodes=ALL PriorityTier=1 PreemptMode=REQUEUE GraceTime=10
PartitionName=short Nodes=ALL PriorityTier=10 PreemptMode=OFF MaxTime=1
"""


def unavailable() -> str | None:
    """Why no Slurm can be started here, in one line, or None when it can."""
    if os.geteuid() != 0:
        return "not root: the daemons of a test Slurm need it"
    path = f"{os.environ.get('PATH', '')}:{SBIN}"
    missing = [program for program in PROGRAMS if shutil.which(program, path=path) is None]
    return f"not installed: {', '.join(missing)} (bash scripts/install_system_packages.sh)" if missing else None


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on at this moment, below the range that outgoing connections use."""
    found: list[int] = []
    port = 17000 + os.getpid() % 9000
    while len(found) < count:
        port += 1
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
                found.append(port)
            except OSError:
                continue
    return found


def start_time(pid: int) -> str | None:
    """When a process began, in clock ticks; None when it is gone or dead. Tells it from a later one of its number."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]


def wait_until(what: str, test: Callable[[], bool], seconds: float = 30) -> None:
    """Poll until the test holds. Raises TimeoutError that names what was waited for."""
    end = time.monotonic() + seconds
    while not test():
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {seconds} s")
        time.sleep(0.05)


@dataclass
class Cluster:
    """One cluster in one folder."""

    root: Path
    nodes: int = 2
    cpus: int = 64
    memory: int = 600_000
    gpus: int = 8
    extra: str = ""
    """More slurm.conf lines."""
    processes: dict[str, tuple[int, str]] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """Node names, other ones for every cluster on this machine."""
        return [f"t{os.getpid()}n{i}" for i in range(1, self.nodes + 1)]

    @property
    def env(self) -> dict[str, str]:
        """The environment in which sbatch, squeue and the like talk to this cluster."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SBATCH_"))}
        return {**kept, "SLURM_CONF": str(self.root / "slurm.conf"), "PATH": f"{os.environ['PATH']}:{SBIN}"}

    def up(self) -> None:
        """Configure and start everything; wait until every node answers. Stops what it started when it fails."""
        try:
            self._configure()
            self._start_munged()
            self._start("slurmctld", ["slurmctld", "-D"])
            wait_until("slurmctld answers", lambda: self._call("scontrol", "ping").returncode == 0)
            for name in self.names:
                self._start(name, ["slurmd", "-D", "-N", name])
            wait_until("all nodes are idle", self._all_idle)
        except BaseException:
            self.down()
            raise

    def down(self) -> None:
        """Cancel all jobs, then end exactly the processes of this cluster."""
        if "slurmctld" in self.processes:
            self._call("scancel", "--full", "--quiet", f"--user={os.environ.get('USER', 'root')}")
            try:
                wait_until("the queue is empty", lambda: not self._call("squeue", "-h").stdout.strip(), 10)
            except TimeoutError as error:
                print(f"test Slurm: {error}; its processes are killed", file=sys.stderr)
        for name in reversed(list(self.processes)):
            self._stop(*self.processes.pop(name))
        for pid in marked_processes(self.root):
            os.kill(pid, signal.SIGKILL)
        self._record()

    def _configure(self) -> None:
        for folder in ("log", "state", "spool", "dev"):
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        ports = free_ports(1 + self.nodes)
        lines = [CONFIGURATION.format(root=self.root, ports=ports)]
        lines += [
            f"NodeName={name} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} CPUs={self.cpus} "
            f"RealMemory={self.memory} Gres=gpu:{self.gpus}\n"
            for name, port in zip(self.names, ports[1:], strict=True)
        ]
        (self.root / "slurm.conf").write_text("".join(lines) + self.extra)
        for i in range(self.gpus):  # Slurm wants one character device a GPU: aliases of /dev/null
            device = self.root / "dev" / f"gpu{i}"
            if not device.exists():
                os.mknod(device, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        (self.root / "gres.conf").write_text(f"Name=gpu File={self.root}/dev/gpu[0-{self.gpus - 1}]\n")

    def _start_munged(self) -> None:
        folder = self.root / "munge"
        folder.mkdir(mode=0o755, exist_ok=True)
        key = folder / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        for path in (folder, key):
            shutil.chown(path, "munge", "munge")
        command = ["setpriv", "--reuid=munge", "--regid=munge", "--clear-groups", "munged", "--foreground"]
        command += [f"--{name.replace('_', '-')}={folder / name.split('_')[0]}" for name in ("socket", "pid_file")]
        command += [f"--key-file={key}", f"--log-file={folder}/log", f"--seed-file={folder}/seed"]
        self._start("munged", command)
        wait_until("munged answers", lambda: (folder / "socket").is_socket())

    def _start(self, name: str, command: Sequence[str]) -> None:
        with (self.root / "log" / f"{name}.out").open("ab") as log:
            started = subprocess.Popen(
                command, env={**self.env, MARK: str(self.root)}, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True, cwd="/",
            )  # fmt: skip
        self.processes[name] = (started.pid, start_time(started.pid) or "")
        self._record()

    def _record(self) -> None:
        (self.root / "processes.json").write_text(json.dumps(self.processes))

    def _stop(self, pid: int, started: str) -> None:
        if start_time(pid) != started:
            return
        os.kill(pid, signal.SIGTERM)
        try:
            wait_until(f"process {pid} ends", lambda: start_time(pid) != started, 10)
        except TimeoutError:
            os.kill(pid, signal.SIGKILL)

    def _all_idle(self) -> bool:
        states = self._call("sinfo", "-h", "-N", "-p", "debug", "-o", "%t").stdout.split()
        return states == ["idle"] * self.nodes

    def _call(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=30)


def marked_processes(root: Path) -> list[int]:
    """Processes whose environment says that a daemon or a job step of this cluster started them."""
    wanted = f"{MARK}={root}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:  # it ended meanwhile
                continue
    return found


def main(verb: str, root: Path) -> None:
    """The two verbs of the command line."""
    if verb == "up":
        root.mkdir(mode=0o755, parents=True, exist_ok=True)
        Cluster(root.resolve()).up()
        print(f"export SLURM_CONF={root.resolve()}/slurm.conf PATH=$PATH:{SBIN}")
    elif verb == "down":
        recorded = json.loads((root / "processes.json").read_text())
        Cluster(root.resolve(), processes={name: (pid, begun) for name, (pid, begun) in recorded.items()}).down()
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
