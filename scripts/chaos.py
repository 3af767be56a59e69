"""Rounds of chaos: the smoke pipeline on a real Slurm, faults at random moments, and the undisturbed result after all.

    bash scripts/chaos.sh [--rounds N] [--seed S] [--results FILE]
    bash scripts/chaos.sh --report

Rounds that the results hold already for a seed are not played again. Ends with 1 when a round went wrong.
"""

from __future__ import annotations

import argparse
import json
import random
import secrets
import shutil
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from chaos_faults import KINDS, Fault, draw, stop_submitter
from chaos_lab import HOME, SHAPES, STAGES, Lab, laboratory
from chaos_report import SAME, report
from cluster import unavailable
from processes import wait_until

PATIENCE = 900.0
"""Seconds after which a round counts as hung."""
STUCK = 40.0
"""Seconds after which jobs that wait for others, of which none is at work, wait for nothing."""
MOST_MENDED = 6
RARE = {"hung until TIMEOUT": 0.25, "time limit near": 0.7, "node cut off": 0.6}
"""Kinds that take long, drawn less often than others (1)."""
CLEAR = ("failed", "interrupted", "cancelled", "blocked", "done", "ended, cause unknown")
"""What `status` may say of a stage of a quiet run; the last only where Slurm itself has lost the job."""
RELEASED = ("JobHeldUser", "launch failed requeued held")
"""Slurm's reasons for holding a job after it crashed: it lost the release, or took the job for a second one."""
MENDED = ("failed", "interrupted", "cancelled", "ended", "blocked: Slurm takes a stage that is done for failed")
"""How `status` begins of what `retry` is for."""
LOST = "Slurm does not know it"


class Wrong(Exception):
    """A round ended in a way that no round may end in."""


class Round:
    """One run with its faults, and the operator who does what the pages say: `run` again, `retry`."""

    def __init__(self, lab: Lab, seed: int, number: int, log: Any = print) -> None:
        self.lab, self.log = lab, log
        self.name = f"round-{seed}-{number}"
        self.rng = random.Random(f"{seed}/{number}")
        self.shape = self.rng.choice(list(SHAPES))
        self.faults = self._draw()
        self.submitter = self.rng.choice([None, None, None, signal.SIGTERM, signal.SIGKILL])
        self.delay = round(self.rng.uniform(0.3, 4), 2)
        self.submitter_told = ""
        self.mended: list[str] = []
        self.seen: dict[str, tuple[str, str, str, str]] = {}
        self.seen_since = 0.0

    def _draw(self) -> list[Fault]:
        weights = {kind: RARE.get(kind, 1.0) for kind in KINDS}
        if self.shape != "torchrun":
            del weights["kill -9 torchrun"]
        kinds = self.rng.choices(list(weights), list(weights.values()), k=self.rng.choice([1, 2]))
        drawn = [draw(self.rng, kind, self.shape) for kind in kinds]
        return sorted(drawn, key=lambda fault: (STAGES.index(fault.stage), fault.step))

    def play(self, reference: dict[str, Any]) -> None:
        """Play the round to its end. Raises Wrong with what is not as it must be."""
        self._submit()
        waiting = list(self.faults)
        end = time.monotonic() + PATIENCE
        while not self._is_quiet(waiting):
            if time.monotonic() > end:
                raise Wrong(f"not quiet within {PATIENCE:.0f} s: {self.lab.queue(self.name)}")
            time.sleep(0.05)
        self._verify(reference)

    def _submit(self) -> None:
        """Start the run; when the submitter is to be stopped, do that and start it again."""
        words = self.lab.run_words(self.name, self.shape)
        if self.submitter:
            self.submitter_told = stop_submitter(self.lab.start(*words), self.submitter, self.delay)
        code, told = self.lab.call(*words)
        if code:
            raise Wrong(f"`run` ended with {code}: {told[-500:]}")

    def _is_quiet(self, waiting: list[Fault]) -> bool:
        """Inject what is due; when nothing is at work, see whether all is done, else `retry`."""
        stage_done = {stage for stage in STAGES if self.lab.run(self.name).done(stage)}
        while waiting and (waiting[0].stage in stage_done or waiting[0].is_due(self.lab, self.name)):
            fault = waiting.pop(0)
            if fault.stage not in stage_done:
                fault.inject(self.lab, self.name)
            self.log(f"  {fault.kind} in {fault.stage}: {fault.injected or 'too late'}")
        queue = self.lab.queue(self.name)
        moving = [job for job in (queue or {}).values() if job[2] not in ("DependencyNeverSatisfied", "Dependency")]
        if queue is None or any(job[2] not in RELEASED for job in moving):
            time.sleep(0.3)
            return self._refuse_held(queue or {})
        self.lab.resume_nodes()
        if queue != self.seen:
            self.seen, self.seen_since = queue, time.monotonic()
        if "Dependency" in {job[2] for job in queue.values()} and time.monotonic() < self.seen_since + STUCK:
            time.sleep(0.3)
            return False  # the next stage is about to start
        states = self.lab.states(self.name)
        if states and all(each["state"] == "done" for each in states.values()):
            return True
        if states:
            self._mend(states, held=bool(moving))
        return False

    def _refuse_held(self, queue: dict[str, tuple[str, str, str, str]]) -> bool:
        held = [stage for stage, job in queue.items() if "held" in job[2].lower() and job[2] not in RELEASED]
        if held:
            raise Wrong(f"{held[0]} is held for ever: {queue}")
        return False

    def _mend(self, states: dict[str, dict[str, Any]], *, held: bool) -> None:
        """What status says must be clear; then `retry`, or `run` again where Slurm lost the release of a job."""
        told = {stage: f"{each['state']}: {each['reason']}" for stage, each in states.items()}
        unclear = [stage for stage, each in states.items() if each["state"] not in CLEAR]
        broken = {stage: words for stage, words in told.items() if words.startswith(MENDED)}
        if not held and (unclear or not broken or not all(words.partition(": ")[2] for words in broken.values())):
            raise Wrong(f"no clear end: {told}")
        if any(words.startswith("ended") and LOST not in words for words in broken.values()):
            raise Wrong(f"no clear end: {told}")
        if len(self.mended) >= MOST_MENDED:
            raise Wrong(f"mended {MOST_MENDED} times in vain: {told}")
        words = self.lab.run_words(self.name, self.shape) if held else ["retry", self.name]
        stage, reason = next(iter(broken.items()), ("", "held"))
        self.mended.append(f"{words[0]}: {stage} {reason[:160]}")
        self.log(f"  {self.mended[-1]}")
        code, answer = self.lab.call(*words)
        if code:
            raise Wrong(f"`{words[0]}` ended with {code}: {answer[-500:]}")

    def _verify(self, reference: dict[str, Any]) -> None:
        """The same weights, answers, numbers and steps; no job, process or checkpoint left."""
        found = self.lab.result(self.name)
        differ = [key for key, value in reference.items() if found[key] != value]
        if differ:
            raise Wrong(f"other {', '.join(differ)} than undisturbed: {[found[key] for key in differ]}"[:2000])
        if self.lab.queue(self.name):
            raise Wrong(f"jobs are left: {self.lab.queue(self.name)}")
        try:
            wait_until("no process is left", lambda: not self.lab.processes(self.name), 15)
        except TimeoutError:
            raise Wrong(f"processes are left: {self.lab.processes(self.name)}") from None
        left = [str(path) for stage in STAGES if (path := self.lab.run(self.name).checkpoints(stage)).exists()]
        if left:
            raise Wrong(f"checkpoints are left: {left}")

    def record(self, seed: int, number: int, outcome: str, seconds: float) -> dict[str, Any]:
        """The line of the results."""
        faults = [
            {"kind": each.kind, "stage": each.stage, "step": each.step, "seconds": each.seconds, "did": each.injected}
            for each in self.faults
        ]
        if self.submitter:
            kind = f"{self.submitter.name} to the submitter"
            faults.insert(0, {"kind": kind, "stage": "", "step": 0, "seconds": self.delay, "did": self.submitter_told})
        begun = self.lab.attempts(self.name)
        return {
            "round": number, "seed": seed, "shape": self.shape, "faults": faults, "attempts": begun,
            "recoveries": sum(max(0, count - 1) for count in begun.values()), "mended": self.mended,
            "lost_steps": self.lab.lost_steps(self.name), "outcome": outcome, "seconds": round(seconds),
        }  # fmt: skip

    def clear_away(self) -> None:
        """End what a round that went wrong left, and make room for the next."""
        if self.lab.queue(self.name) != {}:
            self.lab.call("cancel", self.name)
        self.lab.resume_nodes()
        run = self.lab.run(self.name)
        for path in [run.logs, run.results, *map(run.model, ("base", *STAGES))]:
            shutil.rmtree(path, ignore_errors=True)


def references(lab: Lab, shapes: list[str]) -> dict[str, dict[str, Any]]:
    """What undisturbed runs end with, by shape. Raises Wrong when one does not end well."""
    found = {}
    for shape in shapes:
        name = f"undisturbed-{shape.replace(' ', '-')}"
        code, told = lab.call(*lab.run_words(name, shape))
        if code:
            raise Wrong(told)
        wait_until("the undisturbed run is over", partial(_is_over, lab, name), PATIENCE)
        found[shape] = lab.result(name)
        print(f"undisturbed, {shape}: {found[shape]['weights']}", flush=True)
    return found


def _is_over(lab: Lab, name: str) -> bool:
    return lab.queue(name) == {}


def play(lab: Lab, seed: int, number: int, reference: dict[str, dict[str, Any]], results: Path) -> bool:
    """Play one round and append its line; whether it went well. Of one that did not, the logs are kept."""
    this = Round(lab, seed, number, lambda words: print(words, flush=True))
    print(f"round {number} of seed {seed}, {this.shape}: {[each.kind for each in this.faults]}", flush=True)
    begun, outcome = time.monotonic(), SAME
    try:
        this.play(reference[this.shape])
    except Wrong as wrong:
        outcome = f"WRONG: {wrong}"
        lab.keep_evidence(this.name, results.parent / f"chaos-{this.name}")
    line = this.record(seed, number, outcome, time.monotonic() - begun)
    results.parent.mkdir(parents=True, exist_ok=True)
    with results.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    told = f"{line['recoveries']} recoveries, {len(this.mended)} times mended, {line['lost_steps']} steps lost"
    print(f"  {outcome} ({told}, {line['seconds']} s)", flush=True)
    this.clear_away()
    return outcome == SAME


def read_results(path: Path) -> list[dict[str, Any]]:
    """The lines of all rounds so far."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6), help="printed, to play the same again")
    parser.add_argument("--results", type=Path, default=HOME / "logs" / "chaos.jsonl")
    parser.add_argument("--report", action="store_true", help="only print what all rounds so far gave")
    given = parser.parse_args()
    lines = read_results(given.results)
    if given.report:
        print(report(lines))
        return 0
    if reason := unavailable():
        print(f"error: no Slurm to break: {reason}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    played = {line["round"] for line in lines if line["seed"] == given.seed}
    todo = [number for number in range(1, given.rounds + 1) if number not in played]
    print(f"seed {given.seed}: {len(todo)} rounds", flush=True)
    with laboratory() as lab:
        shapes = {Round(lab, given.seed, number).shape for number in todo}
        reference = references(lab, sorted(shapes))
        try:
            well = [play(lab, given.seed, number, reference, given.results) for number in todo]
        except KeyboardInterrupt:
            return 130
    print(report(read_results(given.results)))
    return 0 if all(well) else 1


if __name__ == "__main__":
    sys.exit(main())
