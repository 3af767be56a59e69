"""Rounds of chaos: a run of the pipeline on a real Slurm, faults at random moments, and the undisturbed result or not.

See scripts/chaos.sh.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

HOME = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(HOME), str(HOME / "tests"), str(HOME / "tests" / "slurm_cluster")]

from cluster import Cluster, unavailable  # noqa: E402
from faults import FAULTS, TRAINED, Target, command_lines  # noqa: E402
from test_slurm_dag import copy_project  # noqa: E402

from pipeline.load import build_recipe  # noqa: E402
from pipeline.records import append_json, file_hash  # noqa: E402
from pipeline.run import RunDir  # noqa: E402
from pipeline.settings import dump_yaml, read_yaml  # noqa: E402

RECORD = HOME / "logs" / "chaos.jsonl"
MENDED = 6
"""How often a round may call `retry` or `run` before it counts as lost."""
LONGEST = 420.0
"""Seconds after which a round is stuck."""
STUCK = 40.0
"""Seconds after which a queue that does not move counts as quiet."""
STEP = re.compile(r"^step (\d+)/", re.MULTILINE)
BAD = ("failed", "interrupted", "cancelled", "blocked", "not submitted", "not started", "ended, cause unknown")


def make_recipe(home: Path) -> None:
    """The smoke recipe with more steps and checkpoints, so that there is something to lose."""
    tree = read_yaml(HOME / "configs" / "smoke.yaml")
    tree["data"]["completions"] = "answer"
    tree["sft"] |= {
        "max_steps": 240,
        "learning_rate": 1e-2,
        "logging_steps": 20,
        "checkpoint": {"every_steps": 40, "keep": 2},
    }
    tree["grpo"] |= {
        "max_steps": 12,
        "learning_rate": 2e-3,
        "logging_steps": 2,
        "checkpoint": {"every_steps": 3, "keep": 2},
    }
    build_recipe("chaos", tree, "chaos.yaml")
    (home / "configs" / "chaos.yaml").write_text(dump_yaml(tree), encoding="utf-8")


class Arena:
    """The Slurm, a copy of the project, and what the undisturbed run gave."""

    def __init__(self, root: Path) -> None:
        self.cluster = Cluster(root / "slurm")
        self.home = copy_project(root / "a 'quoted\" $folder")
        make_recipe(self.home)
        self.expected: dict[str, Any] = {}

    def command(self, *words: str) -> list[str]:
        """The command line as words to execute."""
        return [str(self.home / ".venv" / "bin" / "python"), "-m", "pipeline", *words]

    def call(self, *words: str) -> subprocess.CompletedProcess[str]:
        """The command line, whatever comes of it; jobs go to the partition that others may preempt."""
        env = {**self.cluster.env, "SBATCH_PARTITION": "preempt"}
        return subprocess.run(
            self.command(*words), cwd=self.home, env=env, capture_output=True, text=True, timeout=180, check=False
        )

    def states(self, name: str) -> dict[str, str]:
        """State by stage; empty when the run is not there yet."""
        done = self.call("status", name, "--json")
        return (
            {each["stage"]: each["state"] for each in json.loads(done.stdout)["stages"]} if not done.returncode else {}
        )

    def result(self, name: str) -> dict[str, Any]:
        """Hashes of the weights, and what the evaluation counted."""
        run = RunDir(self.home, name)
        found: dict[str, Any] = {stage: file_hash(run.model(stage) / "model.safetensors") for stage in TRAINED}
        comparison = json.loads(run.comparison.read_text(encoding="utf-8"))
        return found | {"models": comparison["models"], "baselines": comparison["baselines"]}

    def until_quiet(self, name: str, end: float) -> dict[str, str]:
        """Wait until no stage is queued, waiting or running, or for a while none runs and one has come to grief.

        A slurmctld that was killed may hold a job that it believes to have been cancelled: that waits for ever.
        """
        stuck = 0.0
        while True:
            states = self.states(name)
            alive = {"queued", "waiting", "running"} & set(states.values())
            if states and (not alive or stuck > STUCK or time.monotonic() > end):
                return states
            grief = "running" not in alive and any(state in BAD for state in states.values())
            stuck = stuck + 2 if grief else 0.0
            time.sleep(1)


def chaos_round(arena: Arena, number: int, rng: random.Random) -> dict[str, Any]:
    """One round; its record."""
    name, started = f"round-{number}", time.monotonic()
    words = ["run", "chaos", "--run-name", name, "--via", "slurm"]
    if rng.random() < 0.3:
        words += ["resources.sft.launcher=torchrun", "resources.sft.processes=1"]
    target = Target(RunDir(arena.home, name), arena.cluster, rng)
    told = submit(arena, words, rng)
    for kind in rng.sample(list(FAULTS), rng.choice((1, 2, 2, 3))):
        time.sleep(rng.uniform(0.5, 12))
        for _ in range(20):  # a fault wants its moment: a running job, a checkpoint
            said = FAULTS[kind](target)
            if said is not None:
                told.append(said)
                break
            time.sleep(0.5)
    end = time.monotonic() + LONGEST
    mended: list[str] = []
    states = arena.until_quiet(name, end)
    while any(state in BAD for state in states.values()) and len(mended) < MENDED and time.monotonic() < end:
        verb = ["retry", name] if any(state == "failed" for state in states.values()) else words
        done = arena.call(*verb)
        if done.returncode and verb != words:
            done = arena.call(*words)
        mended.append(f"{verb[0]} ({', '.join(sorted(set(states.values()) - {'done'}))})")
        states = arena.until_quiet(name, end)
    return {
        "round": number, "faults": told, "mended_by": mended, "states": states, **judge(arena, target, states),
        "lost_steps": lost_steps(target.run), "attempts": {s: len(target.run.attempts(s)) for s in TRAINED},
        "seconds": round(time.monotonic() - started),
    }  # fmt: skip


def submit(arena: Arena, words: list[str], rng: random.Random) -> list[str]:
    """Submit the run; in some rounds the submitter is killed on the way, and then called again."""
    if rng.random() > 0.25:
        arena.call(*words)
        return []
    number = rng.choice((signal.SIGTERM, signal.SIGKILL))
    env = {**arena.cluster.env, "SBATCH_PARTITION": "preempt"}
    child = subprocess.Popen(
        arena.command(*words), cwd=arena.home, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    time.sleep(rng.uniform(0.2, 2.5))
    child.send_signal(number)
    child.wait(timeout=60)
    arena.call(*words)
    return [f"{number.name} to the submitter"]


def judge(arena: Arena, target: Target, states: dict[str, str]) -> dict[str, Any]:
    """What became of the round: `same`, or what is wrong."""
    wrong = []
    if set(states.values()) != {"done"}:
        wrong.append(f"it ended as {states}")
        arena.call("cancel", target.run.name)
        time.sleep(3)
    elif arena.result(target.run.name) != arena.expected:
        wrong.append("another result than the undisturbed run's")
    left = target.jobs("all")
    if any(arena.cluster.call("squeue", "-h", "-j", job, "-t", "PD,R,CG,S").stdout for job in left):
        wrong.append(f"jobs left: {left}")
    stray = [line for _, line in command_lines() if str(target.run.logs) in line]
    if stray:
        wrong.append(f"processes left: {stray}")
    return {"outcome": "same" if not wrong else "; ".join(wrong)}


def lost_steps(run: RunDir) -> int:
    """Steps that were trained again: those of each attempt beyond where the next one began."""
    lost = 0
    for stage in TRAINED:
        attempts = run.attempts(stage)
        for number, following in enumerate(attempts[1:], 1):
            log = run.attempt_log(stage, number)
            steps = [int(step) for step in STEP.findall(log.read_text())] if log.exists() else []
            lost += max(0, max(steps, default=0) - int(following.get("progress") or 0))
    return lost


def summary(record: Path) -> str:
    """All rounds so far: how they ended, which faults there were, what mended them."""
    rounds = [json.loads(line) for line in record.read_text(encoding="utf-8").splitlines()] if record.exists() else []
    faults: Counter[str] = Counter(re.sub(r"\d+\S*", "N", fault) for each in rounds for fault in each["faults"])
    mended = Counter(re.sub(r" .*", "", verb) for each in rounds for verb in each["mended_by"])
    good = sum(each["outcome"] == "same" for each in rounds)
    lines = [f"{len(rounds)} rounds, {good} with the undisturbed result; {sum(faults.values())} faults"]
    lines += [f"  {count:>4}  {fault}" for fault, count in faults.most_common()]
    lines.append(f"attempts beyond the first: {sum(sum(each['attempts'].values()) - 2 for each in rounds)}")
    lines.append(f"steps trained again: {sum(each['lost_steps'] for each in rounds)}; called by hand: {dict(mended)}")
    lines += [
        f"round {each['round']} of seed {each['seed']}: {each['outcome']}"
        for each in rounds
        if each["outcome"] != "same"
    ]
    return "\n".join(lines)


def main() -> int:
    """Run the rounds; 1 when one of them lost something."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--summary", action="store_true")
    parser.add_argument("--record", type=Path, default=RECORD, help="where the rounds are added")
    given = parser.parse_args()
    if given.summary:
        print(summary(given.record))
        return 0
    if reason := unavailable():
        print(f"no Slurm here: {reason}", file=sys.stderr)
        return 2
    seed = random.SystemRandom().randrange(10**6) if given.seed is None else given.seed
    print(f"seed {seed}", flush=True)
    root = Path(tempfile.mkdtemp(prefix="chaos", dir="/tmp"))
    root.chmod(0o755)
    arena = Arena(root)
    bad = 0
    try:
        arena.cluster.up()
        arena.call("run", "chaos", "--run-name", "calm", "--via", "slurm")
        states = arena.until_quiet("calm", time.monotonic() + LONGEST)
        assert set(states.values()) == {"done"}, states
        arena.expected = arena.result("calm")
        for number in range(1, given.rounds + 1):
            found = {"seed": seed, **chaos_round(arena, number, random.Random(f"{seed} {number}"))}
            append_json(given.record, found)
            bad += found["outcome"] != "same"
            print(
                f"round {number}: {found['outcome']} ({'; '.join(found['faults'])}; {found['seconds']} s)", flush=True
            )
    finally:
        arena.cluster.down()
        if bad:
            print(f"kept: {root}", flush=True)
        else:
            shutil.rmtree(root)
    return int(bad > 0)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the Slurm is stopped then too
    sys.exit(main())
