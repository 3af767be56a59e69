"""A real Slurm in one folder, for this machine only: munged, slurmctld and two slurmd on loopback, no systemd.

    python tests/slurm_cluster/cluster.py up ROOT      start; --help names the options
    eval "$(python tests/slurm_cluster/cluster.py env ROOT)"      from then on sbatch, squeue ... talk to it
    python tests/slurm_cluster/cluster.py down ROOT    stop it and everything that it started, jobs included

The nodes have invented sizes, so that any recipe's resources can be asked for. ROOT must be a plain path whose folders
all belong to root and are not writable by others unless sticky: munged insists. A fresh folder in /tmp, mode 755, does.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import secrets
import shlex
import shutil
import signal
import stat
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import accounting as accounting_files
from configuration import CGROUP_CONF, slurm_conf
from processes import MARK, belonging, end, members, send, start_time, wait_until

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue", "sinfo", "scancel")
SBIN = "/usr/sbin"
GPU_TYPE = "a100"
"""What the fake GPUs are called: jobs may ask for gpu:2 or for gpu:a100:2."""
CGROUPS = Path("/sys/fs/cgroup")
CONTROLLERS = ("freezer", "memory")
OF_SLURM = ("SLURM", "SBATCH_", "SRUN_", "SQUEUE_", "SINFO_", "SCANCEL_", "SCONTROL_", "SALLOC_", "SACCT_")
"""How variables begin that change what the commands of Slurm do."""


def unavailable(*, accounting: bool = False) -> str | None:
    """Why no Slurm (with accounting) can be started here, in one line, or None when it can."""
    if os.geteuid() != 0:
        return "not root: the daemons of a test Slurm need it"
    path = f"{os.environ.get('PATH', '')}:{SBIN}"
    missing = [program for program in PROGRAMS if shutil.which(program, path=path) is None]
    missing += accounting_files.missing(path) if accounting else []
    if missing:
        return f"not installed: {', '.join(missing)} (bash scripts/install_system_packages.sh)"
    with tempfile.TemporaryDirectory() as folder:
        try:
            make_device(Path(folder) / "device")
        except PermissionError:
            return "no device files can be made here: a test Slurm needs them as fake GPUs"
    return None


def make_device(path: Path) -> None:
    """An alias of /dev/null. Raises PermissionError where the machine does not allow it."""
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))


def cgroups_work() -> bool:
    """Whether groups of processes can be made here as Slurm makes them (cgroup v1; v2 needs a systemd)."""
    for controller in CONTROLLERS:
        if not (CGROUPS / controller / "cgroup.procs").exists():
            return False
        try:
            Path(tempfile.mkdtemp(prefix="test", dir=CGROUPS / controller)).rmdir()
        except OSError:
            return False
    return True


@dataclass
class Cluster:
    """One cluster in one folder. Sizes are per node, memory in MB; `extra` holds slurm.conf lines that win."""

    root: Path
    nodes: int = 2
    cpus: int = 64
    memory: int = 600_000
    gpus: int = 8
    gres: str = f"gpu:{GPU_TYPE}"
    """What the fake GPUs are called: NAME:TYPE, or NAME for GPUs without a type."""
    min_job_age: int = 300
    """Seconds for which an ended job is still known."""
    cgroups: bool = field(default_factory=cgroups_work)
    """Whether jobs are tracked, and their memory limited, by cgroups; else nothing limits them."""
    accounting: bool = False
    """Whether slurmdbd keeps the history of jobs (sacct, sacctmgr)."""
    extra: str = ""
    prefix: str = field(default_factory=lambda: f"t{secrets.token_hex(3)}n")
    """Node names begin with it; another one for every cluster of a machine."""
    processes: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Part (munged, slurmctld, a node) -> process id and start time of its daemon."""

    @classmethod
    def recorded(cls, root: Path) -> Cluster:
        """The cluster that was started in a folder. Raises FileNotFoundError when none was."""
        known = json.loads((root / "cluster.json").read_text())
        processes = {part: (pid, started) for part, (pid, started) in known.pop("processes").items()}
        return cls(**{**known, "root": Path(known["root"]), "processes": processes})

    @property
    def names(self) -> list[str]:
        """Node names."""
        return [f"{self.prefix}{i}" for i in range(1, self.nodes + 1)]

    @property
    def env(self) -> dict[str, str]:
        """The environment in which sbatch, squeue and the like talk to this cluster."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(OF_SLURM)}
        return {**kept, "SLURM_CONF": f"{self.root}/slurm.conf", "PATH": f"{os.environ['PATH']}:{SBIN}"}

    def up(self) -> None:
        """Configure and start everything; wait until every node is idle. Stops what it started when it fails.

        Raises ValueError for a folder with an odd name, RuntimeError with the log's end when a daemon gives up and
        TimeoutError when something does not answer.
        """
        if not re.fullmatch(r"/[A-Za-z0-9/._-]{1,70}", str(self.root)):
            raise ValueError(f"a plain absolute path of at most 70 characters is needed, not {str(self.root)!r}")
        if belonging(self.root):
            raise RuntimeError(f"a cluster is up in {self.root}")
        try:
            self._configure()
            self._start_munged()
            if self.accounting:
                self._start_accounting()
            self.start_controller()
            for name in self.names:
                self._start(name, ["slurmd", "-D", "-N", name])
            for name in self.names:
                self._wait(name, partial(self._is_idle, name))
        except BaseException:
            self.down()
            raise

    def start_node(self, name: str, *, idle: bool = True) -> None:
        """Start the slurmd of a node that was ended; with `idle`, wait until it is idle. Raises as `up` does."""
        self._start(name, ["slurmd", "-D", "-N", name])
        self._wait(name, partial(self._is_idle, name) if idle else partial(self._answers, name))

    def start_controller(self) -> None:
        """Start slurmctld, again when it was ended, and wait until it answers. Raises as `up` does."""
        self._start("slurmctld", ["slurmctld", "-D"])
        self._wait("slurmctld", lambda: self.call("scontrol", "ping").returncode == 0)

    def kill(self, part: str, how: signal.Signals = signal.SIGKILL) -> None:
        """End the daemon of a part: slurmctld, or a node's slurmd; what it started lives on.

        One that has not ended a while after another signal is killed, as a service manager does.
        """
        pid, started = self.processes[part]
        for number, seconds in ((how, 60), (signal.SIGKILL, 30)):
            if start_time(pid) == started:
                send(pid, number)
                with suppress(TimeoutError):
                    wait_until(f"{part} is dead", lambda: start_time(pid) != started, seconds)
        if start_time(pid) == started:
            raise TimeoutError(f"{part} (process {pid}) does not die")

    def down(self) -> None:
        """End exactly the processes of this cluster, jobs included. Nothing happens when there are none."""
        for part in reversed(list(self.processes)):
            end(*self.processes[part])
        wait_until(f"no process of the cluster in {self.root} is left", self._clear)
        self.processes.clear()
        if self.root.exists():
            self._record()

    def call(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command that talks to this cluster."""
        return subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=30, check=False)

    def _configure(self) -> None:
        for folder in ("log", "state", "spool", "dev", "munge"):
            (self.root / folder).mkdir(mode=0o755, parents=True, exist_ok=True)
        values = {
            "root": str(self.root),
            "min_job_age": self.min_job_age,
            "memory_per_cpu": self.memory // self.cpus,
            "gres": self.gres.partition(":")[0],
            "process_tracking": "proctrack/cgroup" if self.cgroups else "proctrack/linuxproc",
            "task_plugin": "task/cgroup" if self.cgroups else "task/none",
        }
        size = f"CPUs={self.cpus} RealMemory={self.memory}" + (f" Gres={self.gres}:{self.gpus}" if self.gpus else "")
        extra = self.extra + ("\n" + accounting_files.configure(self.root) if self.accounting else "")
        (self.root / "slurm.conf").write_text(slurm_conf(values, self.names, size, extra))
        (self.root / "cgroup.conf").write_text(CGROUP_CONF)
        devices = [self.root / "dev" / f"gpu{i}" for i in range(self.gpus)]  # Slurm wants one a GPU
        for device in devices:
            if not device.exists():
                make_device(device)
        name, _, kind = self.gres.partition(":")
        line = f"Name={name}" + (f" Type={kind}" if kind else "")
        (self.root / "gres.conf").write_text("".join(f"{line} File={device}\n" for device in devices))
        self._record()

    def _start_munged(self) -> None:
        folder = self.root / "munge"
        key_file = folder / "key"
        key_file.unlink(missing_ok=True)
        key_file.touch(mode=0o600)
        key_file.write_bytes(secrets.token_bytes(128))
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        options = [f"--{option}={folder}/{name}" for option, name in files.items()]
        self._start("munged", ["munged", "--foreground", *options])
        self._wait("munged", (folder / "socket").is_socket)

    def _start_accounting(self) -> None:
        self._start("mariadbd", accounting_files.database_command(self.root))
        self._wait("mariadbd", accounting_files.socket(self.root).is_socket)
        self._start("slurmdbd", ["slurmdbd", "-D"], accounting_files.daemon_environment(self.root))
        self._wait("slurmdbd", lambda: self.call("sacctmgr", "-n", "show", "cluster").returncode == 0)
        self.call("sacctmgr", "-i", "add", "cluster", "test")

    def _start(self, part: str, command: Sequence[str], more: Mapping[str, str] | None = None) -> None:
        with (self.root / "log" / f"{part}.out").open("ab") as log:
            started = subprocess.Popen(
                command, env={**self.env, **(more or {}), MARK: str(self.root)}, stdin=subprocess.DEVNULL, stdout=log,
                stderr=log, start_new_session=True, cwd="/",
            )  # fmt: skip
        self.processes[part] = (started.pid, start_time(started.pid) or "")
        self._record()

    def _record(self) -> None:
        """Write what `down` needs from another process; a kill while writing leaves the old one."""
        new = self.root / "cluster.json.new"
        new.write_text(json.dumps({**asdict(self), "root": str(self.root)}))
        new.replace(self.root / "cluster.json")

    def _wait(self, part: str, answers: Callable[[], bool]) -> None:
        """Until a part answers. Raises RuntimeError when its daemon has ended before that."""
        pid, started = self.processes[part]
        wait_until(f"{part} answers", lambda: start_time(pid) != started or answers())
        if start_time(pid) != started:
            logs = [path for path in (self.root / "log").glob(f"{part}.*") if path.stat().st_size]
            told = "\n".join(line for path in sorted(logs) for line in path.read_text().splitlines()[-5:])
            raise RuntimeError(f"{part} did not start:\n{told}")

    def _is_idle(self, name: str) -> bool:
        return self.call("sinfo", "-h", "-n", name, "-p", "debug", "-o", "%t").stdout.strip() == "idle"

    def _answers(self, name: str) -> bool:
        state = self.call("sinfo", "-h", "-n", name, "-p", "debug", "-o", "%t").stdout.strip()
        return bool(state) and not state.startswith(("down", "unk")) and not state.endswith("*")

    def _clear(self) -> bool:
        """Kill what is left, also what cut all ties but its cgroup, and remove the cgroups; whether all is done."""
        tops = [CGROUPS / controller / f"slurm_{name}" for controller in CONTROLLERS for name in self.names]
        groups = [Path(folder) for top in tops for folder, _, _ in os.walk(top, topdown=False)]
        left = belonging(self.root).union(*map(members, groups))
        for pid in left:
            send(pid, signal.SIGKILL)
        for group in groups:
            with suppress(OSError):  # it has members yet, or slurmstepd removed it
                group.rmdir()
        return not left and not any(top.exists() for top in tops)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=["up", "env", "down"])
    parser.add_argument("root", type=Path)
    for name, default in (("nodes", 2), ("cpus", 64), ("memory", 600_000), ("gpus", 8), ("min-job-age", 300)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--accounting", action="store_true", help="keep the history of jobs: slurmdbd and mariadbd")
    parser.add_argument("--no-cgroups", action="store_true", help="do without, even where they work")
    parser.add_argument("--extra", default="", help="more slurm.conf lines; they win over those of the same key")
    given = vars(parser.parse_args())
    verb, root = given.pop("verb"), given.pop("root").resolve()
    if verb == "up":
        root.mkdir(mode=0o755, parents=True, exist_ok=True)
        given["cgroups"] = not given.pop("no_cgroups") and cgroups_work()
        Cluster(root, **given).up()
    elif verb == "down":
        Cluster.recorded(root).down()
    else:
        print(f"export SLURM_CONF={shlex.quote(Cluster.recorded(root).env['SLURM_CONF'])} PATH=$PATH:{SBIN}")


if __name__ == "__main__":
    main()
