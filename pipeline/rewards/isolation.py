"""Processes that can harm nothing: bubblewrap without network, with the system's libraries alone, and limits."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pipeline.errors import UserError

UNPRIVILEGED = 65534
"""User and group inside, and outside too when started by root: root's processes are not bound by limits."""
TMP_BYTES = 64 * 2**20
PROBE_SECONDS = 10.0

_KERNEL = {
    "kernel/unprivileged_userns_clone": "0",
    "user/max_user_namespaces": "0",
    "kernel/apparmor_restrict_unprivileged_userns": "1",
}
"""Settings under /proc/sys, and the values at which they forbid user namespaces to users."""


@dataclass(frozen=True)
class Limits:
    """What one isolated run may use; what a process inside may do is bounded for each process, `processes` of them."""

    memory: int = 512 * 2**20
    """Bytes of address space of a process."""
    cpu_seconds: int = 6
    processes: int = 8
    file_bytes: int = 16 * 2**20
    files: int = 64
    seconds: float = 20.0
    """Of the clock on the wall, for the whole run: what sleeps ends too. Far above cpu_seconds, so that a busy machine
    does not change verdicts."""
    reply_bytes: int = 2**20
    """Most that is read of one answer."""

    def inside(self) -> dict[str, int]:
        """Limits by their names in `resource`."""
        return {
            "RLIMIT_AS": self.memory,
            "RLIMIT_CPU": self.cpu_seconds,
            "RLIMIT_NPROC": self.processes,
            "RLIMIT_FSIZE": self.file_bytes,
            "RLIMIT_NOFILE": self.files,
            "RLIMIT_CORE": 0,
        }


class Silent(Exception):
    """An isolated process that ended, wrote too much or did not answer in time; the text says which."""


class Isolated:
    """One isolated process that is spoken to line by line; it and all its children end with `kill`."""

    def __init__(self, command: tuple[str, ...], source: str, reply_bytes: int) -> None:
        self.process = subprocess.Popen(
            [*command, "-c", source], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            cwd="/", env={"PATH": "/usr/bin:/bin"}, bufsize=0, process_group=0,
        )  # fmt: skip
        assert self.process.stdin and self.process.stdout
        self.incoming, self.outgoing = self.process.stdout.fileno(), self.process.stdin.fileno()
        os.set_blocking(self.outgoing, False)
        self.reply_bytes, self.unread = reply_bytes, b""

    def send(self, line: bytes, deadline: float) -> None:
        """Write a line, its end added. Raises Silent when the process is gone or does not read it in time."""
        left = memoryview(line + b"\n")
        while left:
            _wait(self.outgoing, select.POLLOUT, deadline)
            try:
                left = left[os.write(self.outgoing, left) :]
            except BrokenPipeError:
                raise Silent("the program ended by itself") from None

    def receive(self, deadline: float) -> bytes:
        """The next line. Raises Silent for the end of the process, for too long a line and at the deadline."""
        while b"\n" not in self.unread:
            if len(self.unread) > self.reply_bytes:
                raise Silent(f"an answer of more than {self.reply_bytes} bytes")
            _wait(self.incoming, select.POLLIN, deadline)
            read = os.read(self.incoming, 2**16)
            if not read:
                raise Silent(self._end())
            self.unread += read
        line, _, self.unread = self.unread.partition(b"\n")
        return line

    def _end(self) -> str:
        status = self.process.wait()
        return "the program ended by itself" if status == 0 else f"the program was ended (status {status})"

    def kill(self) -> None:
        """End the process, its namespace and with it everything that runs there; wait until it is gone."""
        if self.process.poll() is None:
            # the group too: while bubblewrap starts, its child waits for a word of it that then never comes
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream
            stream.close()


def _wait(stream: int, event: int, deadline: float) -> None:
    poll = select.poll()
    poll.register(stream, event)
    left = deadline - time.monotonic()
    if left <= 0 or not poll.poll(left * 1000):
        raise Silent("out of time")


@cache
def isolated_python() -> tuple[str, ...]:
    """The command of an isolated Python, found by running one.

    Raises UserError where none can be made: untrusted code is then not run at all.
    """
    bwrap, reasons = shutil.which("bwrap"), []
    setpriv = shutil.which("setpriv")
    if bwrap is None:
        raise _refused("bubblewrap is not installed", "install the package bubblewrap, 0.8 or newer")
    if os.getuid() == 0 and setpriv is None:
        raise _refused("started as root, and setpriv is not installed", "install util-linux, or start as a user")
    for python, prefix in _pythons():
        command = (*_drop(setpriv), bwrap, *_namespace(python, prefix), python, "-I", "-S", "-X", "utf8")
        reason = _probe(command)
        if reason is None:
            return command
        reasons.append(f"{python}: {reason}")
    raise _refused("; ".join(reasons), _hint())


def _refused(reason: str, do: str) -> UserError:
    return UserError("untrusted code cannot be isolated here", value=reason, where="docs/sandbox.md", do=do)


def _pythons() -> list[tuple[str, str]]:
    """(interpreter, prefix) that may be had inside: that of this process, else the system's."""
    own = str(Path(getattr(sys, "_base_executable", sys.executable)).resolve())
    system = Path("/usr/bin/python3")
    return [(own, sys.base_prefix), *([(str(system.resolve()), "/usr")] if system.exists() else [])]


def _drop(setpriv: str | None) -> tuple[str, ...]:
    if os.getuid() != 0:
        return ()
    return (str(setpriv), f"--reuid={UNPRIVILEGED}", f"--regid={UNPRIVILEGED}", "--clear-groups")


def _namespace(python: str, prefix: str) -> list[str]:
    """The arguments of bwrap: only the interpreter and libraries to read, only /tmp to write."""
    mounts = []
    for path in ("/usr/lib", "/usr/lib64", "/usr/lib32"):
        mounts += ["--ro-bind-try", path, path]
    for link in ("/lib", "/lib64", "/lib32"):
        if Path(link).is_symlink():
            mounts += ["--symlink", f"usr{link}", link]
        else:
            mounts += ["--ro-bind-try", link, link]
    if prefix != "/usr":
        mounts += ["--ro-bind", f"{prefix}/lib", f"{prefix}/lib"]
    nobody = str(UNPRIVILEGED)
    return [
        "--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent", "--new-session", "--clearenv",
        "--hostname", "sandbox", "--uid", nobody, "--gid", nobody, "--cap-drop", "ALL",
        "--setenv", "PATH", "/usr/bin", "--setenv", "LD_LIBRARY_PATH", f"{prefix}/lib",
        "--setenv", "PYTHONHASHSEED", "0",
        *mounts, "--ro-bind", python, python, "--dev", "/dev", "--remount-ro", "/dev", "--proc", "/proc",
        "--size", str(TMP_BYTES), "--tmpfs", "/tmp", "--chdir", "/tmp", "--remount-ro", "/",
    ]  # fmt: skip


def _probe(command: tuple[str, ...]) -> str | None:
    """None when the command runs a program, else why it does not."""
    code = f"import json, os, resource, _json; print('up' if os.getuid() == {UNPRIVILEGED} else 'not alone')"
    command = (*command, "-c", code)
    try:
        done = subprocess.run(command, capture_output=True, cwd="/", timeout=PROBE_SECONDS, text=True)
    except subprocess.TimeoutExpired:
        return f"no answer in {PROBE_SECONDS:g} s"
    return None if done.stdout.strip() == "up" else (done.stderr or done.stdout).strip()[-200:] or "it says nothing"


def _hint() -> str:
    found = [f"/proc/sys/{name} is {value}" for name, value in _KERNEL.items() if _setting(name) == value]
    if found:
        return f"this machine forbids user namespaces ({', '.join(found)}): ask its administrator, or use another node"
    return "bubblewrap 0.8 or newer and user namespaces are needed: ask the machine's administrator"


def _setting(name: str) -> str | None:
    path = Path("/proc/sys") / name
    return path.read_text(encoding="ascii").strip() if path.exists() else None
