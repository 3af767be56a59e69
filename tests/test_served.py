"""The generation server of a GRPO stage, a stand-in with the same address: neither side outlives the other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import StageFailed
from pipeline.load import load_recipe, recipe_file
from pipeline.run import HOME, RunDir
from pipeline.training import served
from pipeline.training.launchers import free_port
from pipeline.training.served import Server, serving

STAND_IN = Path(__file__).with_name("generation_server.py")


class Watched:
    """A stand-in server, and what its watch said."""

    def __init__(self, folder: Path, start: float = 0.0, command: list[str] | None = None) -> None:
        self.died = threading.Event()
        self.said: list[str] = []
        port = free_port()
        self.server = Server(
            command or [sys.executable, str(STAND_IN), str(port), str(start)], os.environ,
            f"http://127.0.0.1:{port}", folder / "generation.out", self._hear, look_seconds=0.2,
        )  # fmt: skip

    def _hear(self, reason: str) -> None:
        self.said.append(reason)
        self.died.set()


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    made = Watched(tmp_path, start=0.3)
    yield made
    made.server.process.send_signal(signal.SIGCONT)
    made.server.end()


def test_a_server_is_waited_for_and_ended(watched: Watched) -> None:
    assert not watched.server.answers()
    watched.server.wait(30)
    assert watched.server.answers()
    watched.server.end()
    assert watched.server.process.poll() is not None and not watched.said and not watched.server.failure


def test_a_server_that_ends_is_told_with_its_last_words(watched: Watched) -> None:
    watched.server.wait(30)
    with pytest.raises((urllib.error.URLError, ConnectionError)):
        urllib.request.urlopen(f"{watched.server.url}/end", timeout=5)
    assert watched.died.wait(30)
    assert watched.said == [watched.server.failure]
    assert watched.server.failure.startswith("the generation server ended with 3: 'out of memory, they say' in ")


def test_a_server_that_falls_silent_counts_as_dead(watched: Watched) -> None:
    watched.server.wait(30)
    watched.server.process.send_signal(signal.SIGSTOP)
    assert watched.died.wait(60)
    assert "does not answer any more: 'loading'" in watched.said[0]


def test_a_server_that_does_not_come_up_fails_the_stage(tmp_path: Path) -> None:
    for command, told in (
        ([sys.executable, "-c", "print('no such model'); raise SystemExit(1)"], "ended with 1: 'no such model'"),
        ([sys.executable, "-c", "import time; print('slow', flush=True); time.sleep(60)"], "did not answer within 1 s"),
    ):
        server = Watched(tmp_path, command=command).server
        with pytest.raises(StageFailed, match=told):
            server.wait(1 if "slow" in command[-1] else 30)
        server.end()


def test_the_server_ends_with_its_job_body(tmp_path: Path) -> None:
    port = free_port()
    body = (
        "import os, sys, time; from pathlib import Path; from pipeline.training.served import Server;"
        f"s = Server([sys.executable, {str(STAND_IN)!r}, '{port}', '0'], os.environ, 'http://127.0.0.1:{port}',"
        f" Path({str(tmp_path / 'log')!r}), print); s.wait(30); print(s.process.pid, flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", body], cwd=HOME, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    pid = int(child.stdout.readline())
    child.kill()
    child.wait()
    end = time.monotonic() + 30
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]:
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_stage_is_told_where_its_server_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["grpo.generation=vllm-server", "resources.grpo.gpus=4", "resources.grpo.processes=3"]
    recipe, run = load_recipe(recipe_file(HOME, "phi3"), words), RunDir(tmp_path, "phi3")
    command = served.server_command(recipe, run, "grpo", 20123)
    assert command[1:6] == ["vllm-serve", "--model", "microsoft/Phi-3.5-mini-instruct", "--host", "127.0.0.1"]
    assert Path(command[0]).name == "trl" and "20123" in command
    seen: list[str] = []
    stand_in = [sys.executable, str(STAND_IN)]
    monkeypatch.setattr(served, "server_command", lambda *arguments: [*stand_in, str(arguments[-1]), "0"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    with serving(recipe, run, "grpo", os.environ, tmp_path / "generation.out", seen.append) as (environment, server):
        assert server is not None and environment[served.URL] == server.url and server.answers()
        assert environment["CUDA_VISIBLE_DEVICES"] == "0,1,2"
        theirs = Path(f"/proc/{server.process.pid}/environ").read_bytes().split(b"\0")
        assert b"CUDA_VISIBLE_DEVICES=3" in theirs
    assert server.process.poll() is not None and not seen
    with serving(recipe, run, "sft", {"A": "b"}, tmp_path / "x", seen.append) as (environment, none):
        assert (environment, none) == ({"A": "b"}, None)
