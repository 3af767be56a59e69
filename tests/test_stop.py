"""How the processes of a stage end: told to stop, all save and end; a job body that is killed takes them along."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.load import build_recipe
from pipeline.run import HOME, RunDir
from pipeline.settings import read_yaml
from pipeline.training import checkpoints
from pipeline.training.launch import record_end
from pipeline.training.stop import STOPPED_CODE

pytestmark = pytest.mark.training

BODY = [sys.executable, "-m", "pipeline.training.launch"]


def environment(**extra: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(HOME), **extra}


def write_run(root: Path, name: str, **resources: Any) -> RunDir:
    """A run whose sft stage would train for minutes."""
    run = RunDir(root, name)
    tree = read_yaml(HOME / "configs" / "smoke.yaml")
    tree["sft"] |= {"max_steps": 100_000, "logging_steps": 1}
    tree["resources"]["sft"] |= resources
    run.write_resolved(build_recipe("smoke", tree, "smoke.yaml"), {})
    return run


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stop")


def prepare(run: RunDir) -> RunDir:
    done = subprocess.run([*BODY, str(run.logs), "preprocess"], env=environment(), cwd=HOME, check=False)
    assert done.returncode == 0
    return run


@contextlib.contextmanager
def at_work(run: RunDir) -> Iterator[subprocess.Popen[bytes]]:
    """The job body of sft in its tenth step or later; killed at the end if it still lives."""
    body = subprocess.Popen([*BODY, str(run.logs), "sft"], env=environment(), cwd=HOME, stdout=subprocess.DEVNULL)
    try:
        logged = "ten steps are logged"
        until(logged, lambda: body.poll() is not None or run.metrics_bytes("sft") > 1500, seconds=COMPILING)
        assert body.poll() is None, run.latest_log("sft").read_text()
        yield body
    finally:
        body.kill()
        body.wait()


def until(what: str, test: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not test():
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        time.sleep(0.05)


def below(pid: int) -> list[int]:
    """All processes that a process started, and those that they started."""
    children = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [each for child in children for each in (child, *below(child))]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


LAUNCHERS = [
    ("none", {}),
    ("torchrun", {"launcher": "torchrun", "processes": 2}),
    ("accelerate", {"launcher": "accelerate", "processes": 2}),
]
DEEPSPEED = {"launcher": "deepspeed", "processes": 2, "deepspeed": "zero2.json"}
COMPILING = 900
"""Seconds that DeepSpeed may take to compile its extension, once in each project folder."""


@pytest.mark.parametrize(
    ("name", "resources"),
    [
        *(pytest.param(name, resources, id=name) for name, resources in LAUNCHERS[:2]),
        *(pytest.param(name, resources, id=name, marks=pytest.mark.long) for name, resources in LAUNCHERS[2:]),
        pytest.param("deepspeed", DEEPSPEED, id="deepspeed", marks=pytest.mark.long),
    ],
)
def test_all_processes_save_and_end(root: Path, name: str, resources: dict[str, Any]) -> None:
    """SIGTERM reaches every process, as Slurm sends it: launcher and ranks alike."""
    run = prepare(write_run(root, name, **resources))
    with at_work(run) as body:
        started = [body.pid, *below(body.pid)]
        assert len(started) >= (2 if name == "none" else 4)
        for pid in started:
            os.kill(pid, signal.SIGTERM)
        assert body.wait(120) == 130
        assert not any(alive(pid) for pid in started)
    state = run.state("sft")
    assert (state["state"], state["exit_code"]) == ("interrupted", 130)
    newest = checkpoints.folders(run.checkpoints("sft"))[0]
    found = checkpoints.read(newest, thorough=True)
    assert isinstance(found, checkpoints.Checkpoint)
    assert state["reason"] == f"stopped by SIGTERM at step {found.step}"
    assert found.world_size == (1 if name == "none" else 2)
    assert "Traceback" not in run.latest_log("sft").read_text()


def test_a_job_body_that_ends_before_cancel_has_said_so_says_it_itself(tmp_path: Path) -> None:
    """`cancel` leaves its mark on the submission before Slurm hears of it, and the state to whoever is first."""
    run = RunDir(tmp_path, "r")
    for name, marks in {"sft": {"cancelled": "now"}, "grpo": {}}.items():
        run.write_submission(name, job="7", **marks)
        run.write_state(name, state="running", job="7")
    told = record_end(run, "sft", STOPPED_CODE, "stopped by SIGTERM at step 3")
    assert told == ("cancelled", "cancelled by its user; stopped by SIGTERM at step 3")
    assert record_end(run, "sft", 1, "broken")[0] == "failed", "only a stage that was stopped was cancelled"
    assert record_end(run, "grpo", STOPPED_CODE, "stopped by SIGTERM at step 3")[0] == "interrupted"


@pytest.mark.parametrize(
    ("name", "resources"),
    [pytest.param(*LAUNCHERS[0], id="none", marks=pytest.mark.long), pytest.param(*LAUNCHERS[1], id="torchrun")],
)
def test_a_killed_body_takes_its_processes_along(root: Path, name: str, resources: dict[str, Any]) -> None:
    run = prepare(write_run(root, f"killed-{name}", **resources))
    with at_work(run) as body:
        started = below(body.pid)
        assert started
        body.kill()
        body.wait()
        until("all processes have ended", lambda: not any(alive(pid) for pid in started), 30)


def test_a_killed_rank_ends_the_others_and_the_stage(root: Path) -> None:
    run = prepare(write_run(root, "rank", launcher="torchrun", processes=2, remedies=0))
    with at_work(run) as body:
        ranks = below(below(body.pid)[0])
        assert len(ranks) == 2
        os.kill(ranks[1], signal.SIGKILL)
        assert body.wait(120) == 1
        assert not any(alive(pid) for pid in ranks)
    assert run.state("sft")["state"] == "failed"
    assert re.search("SIGKILL|RuntimeError", run.state("sft")["reason"]), (
        "its own end, or what the other rank saw of it"
    )


CHILD = """\
import os, sys
from pathlib import Path
from pipeline.training.child import Child
command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", sys.argv[1]]
log = Path(sys.argv[1]).with_name("rank0.out")
code, reason = Child().run(command, dict(os.environ), log, Path("none"), alone=False)
sys.exit(f"{code}: {reason}")
"""


def test_the_first_error_of_a_rank_is_the_reason(tmp_path: Path) -> None:
    """Below it stand the launcher's own traceback and a frame of `=` signs."""
    script = tmp_path / "rank.py"
    script.write_text(
        "import os, time\nif os.environ['RANK'] == '1':\n    raise OSError('disk full')\ntime.sleep(60)\n"
    )
    command = [sys.executable, "-c", CHILD, str(script)]
    done = subprocess.run(command, env=environment(), cwd=HOME, capture_output=True, text=True, check=False)
    assert "ChildFailedError" in done.stdout and done.stdout.rstrip().endswith("=====")
    assert done.stderr.strip() == "1: OSError: disk full"


def test_the_signal_that_killed_a_stage_is_told(root: Path) -> None:
    run = prepare(write_run(root, "alone"))
    with at_work(run) as body:
        os.kill(below(body.pid)[0], signal.SIGKILL)
        assert body.wait(120) == 1
    assert run.state("sft")["reason"].startswith("killed by SIGKILL; its last line: ")


TOLD_AFTER_ITS_STAGE = """\
import os, sys
from pathlib import Path
from pipeline.training.child import Child
script = "(sleep $1; [ -z $2 ] || kill -s $2 $PPID) >/dev/null 2>&1 & kill -s TERM $$"
print(Child().run(["bash", "-c", script, "stage", *sys.argv[2:]], dict(os.environ), Path(sys.argv[1]), Path("none")))
"""


@pytest.mark.parametrize(
    ("signal_to_body", "told"),
    [("TERM", "(130, 'stopped by SIGTERM')"), ("INT", "(130, 'stopped by SIGINT')"), ("", "(1, 'killed by SIGTERM')")],
)
def test_a_body_that_is_told_to_stop_after_its_stage_was_stopped_all_the_same(
    tmp_path: Path, signal_to_body: str, told: str
) -> None:
    """Slurm signals the processes of a job one after the other; a stage that alone was killed has failed."""
    command = [sys.executable, "-c", TOLD_AFTER_ITS_STAGE, str(tmp_path / "rank0.out"), "0.5", signal_to_body]
    done = subprocess.run(command, env=environment(), cwd=HOME, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == told


def test_an_attempt_gives_way_to_a_later_one(root: Path) -> None:
    """Slurm took its node for dead and started the job elsewhere: the first attempt records nothing any more."""
    run = prepare(write_run(root, "twice"))
    with at_work(run) as body:
        started = below(body.pid)
        assert run.new_attempt("sft") == 2
        assert body.wait(120) != 0
        assert not any(alive(pid) for pid in started)
    assert run.state("sft")["state"] == "running" and run.done("sft") is None


def test_a_warning_in_time_is_heard_and_told(root: Path) -> None:
    run = prepare(write_run(root, "warned"))
    with at_work(run) as body:
        body.send_signal(signal.SIGUSR1)
        assert body.wait(120) == 130
    assert run.state("sft")["reason"].startswith("stopped by SIGUSR1 at step ")


def test_a_job_that_comes_back_without_getting_further_fails(root: Path) -> None:
    run = prepare(write_run(root, "stalls"))
    for attempt in (1, 2, 3):
        assert run.new_attempt("sft") == attempt
        run.write_attempt("sft", attempt, job="4242", progress=0, remedies=0)
    ended = subprocess.run(
        [*BODY, str(run.logs), "sft"], env=environment(SLURM_JOB_ID="4242"), cwd=HOME, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert ended.returncode == 1
    assert "3 requeues of job 4242 brought sft no further than: 0" in ended.stderr
    state = run.state("sft")
    assert (state["state"], state["attempt"]) == ("failed", 4)
    assert state["reason"] in ended.stderr
