"""The sandbox: hostile programs change nothing, learn nothing and end; plain values go through as they are."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import living, wait_until

from pipeline.errors import StageFailed
from pipeline.rewards.isolation import Isolated, Limits, isolated_python
from pipeline.rewards.sandbox import Checks, Program, Sandbox
from pipeline.rewards.sandboxed.values import decode, encode

HOME = Path(__file__).parent.parent
PROGRAMS = yaml.safe_load((HOME / "tests/sandbox_programs.yaml").read_text(encoding="utf-8"))
HARMFUL, CHEATING = PROGRAMS["harmful"], PROGRAMS["cheating"]


@pytest.fixture(scope="module", autouse=True)
def bubblewrap() -> None:
    """Installed where it can be: a test that needs it never passes over it in silence."""
    if shutil.which("bwrap") is None:
        subprocess.run([HOME / "scripts/install_system_packages.sh"], check=True)
    assert shutil.which("bwrap"), "install bubblewrap: these tests are about it"


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    before = descendants()  # a Slurm that other tests of this session share
    made = Sandbox()
    yield made
    made.close()
    assert descendants().keys() <= before.keys(), f"processes outlive the sandbox: {descendants()}, before {before}"


@pytest.fixture(scope="module")
def short(sandbox: Sandbox) -> Iterator[Sandbox]:
    """For programs that may well never end."""
    made = Sandbox(Limits(seconds=3.0, cpu_seconds=2))
    yield made
    made.close()


def descendants() -> dict[str, str]:
    """Process ids and command lines of this process's children, whichever thread started them."""
    tasks = Path("/proc/self/task").iterdir()
    children = [pid for task in tasks for pid in (task / "children").read_text().split()]
    return {pid: Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ") for pid in children}


def asking(want: str, *arguments: Any) -> Checks:
    """Checks that want a value of f, given as Python source."""
    call = f"candidate({', '.join(map(repr, arguments))})"
    return Checks("", {"candidate": "f"}, ((f"assert {call} == {want}", True),))


class World:
    """What hostile programs must not touch: files, a port, a process of the same user, and a secret in each."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.secret = folder, f"rlc-secret-{secrets.token_hex(8)}"
        folder.mkdir(mode=0o777)
        (folder / "secret").write_text(self.secret)
        for path in (folder, folder / "secret"):
            path.chmod(0o777)
        os.environ["RLC_SECRET"] = self.secret
        self.server = socket.create_server(("127.0.0.1", 0))
        self.abstract = socket.socket(socket.AF_UNIX)
        self.abstract.bind("\0rlc-hostile")
        for each in (self.server, self.abstract):
            each.listen()
            each.settimeout(0)
        drop = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] if os.getuid() == 0 else []
        self.sleeper = subprocess.Popen([*drop, "sleep", "600"], cwd="/")

    def check(self) -> None:
        """Raise AssertionError for anything that is not as it was."""
        assert {path.name: path.read_text() for path in self.folder.iterdir()} == {"secret": self.secret}
        assert self.sleeper.poll() is None
        for each in (self.server, self.abstract):
            with pytest.raises(BlockingIOError):
                each.accept()

    def close(self) -> None:
        """Give all back."""
        self.sleeper.kill()
        self.sleeper.wait()
        self.server.close()
        self.abstract.close()
        del os.environ["RLC_SECRET"]


@pytest.fixture(scope="module")
def public() -> Iterator[Path]:
    """A folder that every user of the machine can read and write: nothing but the sandbox keeps a program out of it."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        yield Path(name)


@pytest.fixture(scope="module")
def world(public: Path) -> Iterator[World]:
    made = World(public / "host")
    yield made
    made.close()


def test_without_the_sandbox_they_would_succeed(sandbox: Sandbox, world: World) -> None:
    """The same programs by the same Python and user, not isolated: what the tests below find kept is kept by it."""
    bare = Sandbox(Limits(seconds=8.0), workers=1)
    place = bare.command.index(str(shutil.which("bwrap")))
    bare.command = (*bare.command[:place], *bare.command[-5:])
    arguments = str(world.folder), world.server.getsockname()[1]
    outcome = bare.run(Program(HARMFUL["a file of the host"]), asking(repr(world.secret), *arguments))
    assert outcome.passed == (True,), outcome.reason
    for name, server in (("a connection", world.server), ("an abstract socket", world.abstract)):
        bare.run(Program(HARMFUL[name]), asking(repr(world.secret), *arguments))
        server.accept()[0].close()
    bare.close()
    world.check()


@pytest.mark.parametrize("name", HARMFUL)
def test_a_harmful_program_changes_nothing_and_ends(name: str, short: Sandbox, world: World) -> None:
    port = world.server.getsockname()[1]
    outcome = short.run(Program(HARMFUL[name]), asking(repr(world.secret), str(world.folder), port))
    assert outcome.passed == (False,), name
    assert outcome.reason
    world.check()


@pytest.mark.parametrize("name", CHEATING)
def test_a_cheating_program_does_not_pass(name: str, short: Sandbox, world: World) -> None:
    outcome = short.run(Program(CHEATING[name]), asking(repr(world.secret), 1))
    assert outcome.passed == (False,), name


def test_a_program_in_a_sandbox_that_was_attacked_before_passes(sandbox: Sandbox) -> None:
    attacks = [(Program(source), asking("'no'", "", 1)) for source in (*CHEATING.values(), "while True: pass")]
    good = (Program("def f(a, b): return 'yes'"), asking("'yes'", "", 1))
    outcomes = sandbox.run_all([case for attack in attacks for case in (attack, good)])
    assert [outcome.passed for outcome in outcomes[1::2]] == [(True,)] * len(attacks)
    assert not any(outcome.passed[0] for outcome in outcomes[::2])


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
    | st.complex_numbers(allow_nan=False) | st.sampled_from([10**30, -(2**60), float("inf"), "\ud800", range(2, 9, 3)]),
    lambda part: st.lists(part) | st.lists(part).map(tuple) | st.dictionaries(st.text() | st.integers(), part)
    | st.sets(st.integers() | st.text()) | st.frozensets(st.tuples(st.integers())),
    max_leaves=20,
)  # fmt: skip


def kinds(value: Any) -> Any:
    """A value with the type of each of its parts, to tell True from 1."""
    if isinstance(value, dict):
        return dict, [(kinds(k), kinds(v)) for k, v in value.items()]
    if isinstance(value, list | tuple):
        return type(value), [kinds(each) for each in value]
    return type(value), value


@given(PLAIN)
@settings(max_examples=300)
def test_plain_values_go_through_as_they_are(value: Any) -> None:
    import json

    text = encode(value, lambda each: 0)
    assert text.isascii() and "\n" not in text
    for raw in (json.loads(text), eval(text, {"null": None, "true": True, "false": False})):
        assert kinds(decode(raw, lambda number: number)) == kinds(value)


@given(st.recursive(st.none() | st.integers() | st.text(max_size=9), lambda part: st.lists(part), max_leaves=9))
def test_what_was_not_encoded_is_no_value_or_a_plain_one(raw: Any) -> None:
    try:
        value = decode(raw, lambda number: number)
    except (ValueError, TypeError, IndexError, OverflowError):
        return
    assert type(value).__module__ == "builtins"


@pytest.mark.parametrize("case", PROGRAMS["honest"], ids=lambda case: case["test"].strip())
def test_honest_programs_pass(case: dict[str, str], sandbox: Sandbox) -> None:
    tests = Checks("", {"candidate": "f", "P": "P"}, ((case["test"], True),))
    outcome = sandbox.run(Program(case["program"]), tests)
    assert outcome.passed == (True,), outcome.reason


def test_each_test_counts_and_the_first_failure_is_told(sandbox: Sandbox) -> None:
    tests = Checks("import math", {"f": "f"}, (("x = math.floor(2.5)", False), ("assert f(x) == 2", True),
                  ("assert f(3) == 4", True), ("for n in range(3): assert f(n) == n", True)))  # fmt: skip
    outcome = sandbox.run(Program("def f(n): return n"), tests)
    assert outcome.passed == (True, False, True) and outcome.share == 2 / 3
    assert outcome.reason.startswith("assert f(3) == 4: AssertionError")


def test_calls_before_the_end_count(sandbox: Sandbox) -> None:
    tests = Checks("", {"f": "f"}, tuple((f"assert f({n}) == {n}", True) for n in range(4)))
    outcome = sandbox.run(Program("def f(n):\n    while n == 2: pass\n    return n"), tests)
    assert outcome.passed == (True, True, False, False)


def test_text_after_a_program_can_be_left_off(sandbox: Sandbox) -> None:
    source = "def f(n):\n    return n\n\nThis function returns n.\n"
    assert sandbox.run(Program(source, trim=True), asking("1", 1)).passed == (True,)
    assert sandbox.run(Program(source), asking("1", 1)).reason.endswith("invalid syntax (<completion>, line 4)")


def test_broken_tests_end_the_stage(sandbox: Sandbox) -> None:
    with pytest.raises(StageFailed, match="no_such_module"):
        sandbox.run(
            Program("def f(n): return n"), Checks("import no_such_module", {"f": "f"}, (("assert f(1)", True),))
        )


def test_many_at_once(sandbox: Sandbox) -> None:
    with ThreadPoolExecutor(8) as pool:
        programs = [Program(f"def f(n): return n + {k}") for k in range(40)]
        outcomes = list(pool.map(lambda each: sandbox.run(each, asking("12", 1)), programs))
    assert [outcome.passed[0] for outcome in outcomes] == [k == 11 for k in range(40)]


def test_what_is_killed_while_it_starts_leaves_nothing() -> None:
    """Bubblewrap's child waits for a word of it before it is bound to end with it."""
    mark = secrets.token_hex(8)
    for moment in range(60):
        started = Isolated(isolated_python(), f"import sys; sys.stdin.read()  # {mark}", 100)
        time.sleep(0.0003 * (moment % 30))
        started.kill()
    wait_until("no process is left", lambda: not any(map(partial(_mentions, mark), living())), 10)


def _mentions(mark: str, pid: int) -> bool:
    try:
        return mark in Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    except OSError:
        return False


def test_without_bubblewrap_it_refuses(tmp_path: Path) -> None:
    """In a process of its own, whose PATH has no bwrap."""
    code = "from pipeline.rewards.sandbox import Sandbox; Sandbox()"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=HOME, env={"PATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.returncode and "bubblewrap is not installed" in done.stderr


@pytest.mark.parametrize(
    ("script", "told"),
    [("exec sh -c 'echo not alone'", "not alone"), ("echo no namespaces >&2; exit 1", "no namespaces")],
)
def test_what_does_not_isolate_is_refused(script: str, told: str, public: Path) -> None:
    """A bwrap that only runs the program is found out; so is one that cannot make a namespace."""
    fake = public / "bwrap"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    code = "from pipeline.rewards.sandbox import Sandbox; Sandbox()"
    env = {"PATH": f"{public}:/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], cwd=HOME, env=env, capture_output=True, text=True)
    assert done.returncode and "cannot be isolated here" in done.stderr and told in done.stderr
