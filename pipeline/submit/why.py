"""Why a stage waits or failed: Slurm's reasons in plain words, the first failing rank's traceback."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline import dag
from pipeline.errors import UserError
from pipeline.recipe import Recipe
from pipeline.run import RunDir
from pipeline.submit import slurm
from pipeline.submit.look import Look
from pipeline.submit.status import BROKEN, StageStatus, duration

REASONS = {
    "None": "it was just submitted: the scheduler has not looked at it yet",
    "Priority": "jobs of higher priority go first",
    "Resources": "the nodes, CPUs, memory or GPUs that it asks for are taken",
    "Dependency": "it waits for the stages that it needs",
    "DependencyNeverSatisfied": "a stage that it needs failed: it never starts by itself; `retry` mends it",
    "BeginTime": "its earliest start has not come; a requeued job waits about two minutes",
    "JobHeldUser": "it is held, by its user, or Slurm crashed before it had saved the release; `run` lets it start",
    "JobHeldAdmin": "an administrator holds it, or it was requeued too often: ask the site's support",
    "PartitionDown": "its partition is down",
    "PartitionInactive": "its partition takes jobs but starts none now",
    "PartitionNodeLimit": "it asks for more nodes than its partition has or gives to one job",
    "PartitionTimeLimit": "it asks for more time than its partition gives: lower resources.STAGE.time",
    "PartitionConfig": "its partition does not allow what it asks for",
    "AccountNotAllowed": "its account may not use this partition: set account in configs/cluster.yaml",
    "QOSNotAllowed": "its QOS may not be used in this partition: set qos in configs/cluster.yaml",
    "InvalidAccount": "its account does not exist: set account in configs/cluster.yaml",
    "InvalidQOS": "its QOS does not exist: set qos in configs/cluster.yaml",
    "NodeDown": "a node that it must have is down",
    "ReqNodeNotAvail": "a node that it must have is down, drained or reserved, perhaps for maintenance",
    "Reservation": "it waits for its reservation to begin",
    "BadConstraints": "no node has what constraint asks for: change constraint in configs/cluster.yaml",
    "Licenses": "a licence that it asks for is taken",
    "JobArrayTaskLimit": "as many tasks of its array run as may run at once",
    "Prolog": "its node is being made ready",
    "Cleaning": "its last attempt is being cleaned up",
    slurm.LAUNCH_FAILED: "its node could not start it, so Slurm holds it; `run` lets it try again",
}
"""What squeue gives as reasons for waiting, in plain words."""
LIMITS = (
    ("Nodes? required|UnavailableNodes", "the nodes that it could use are down, drained or reserved"),
    ("^(QOS|Assoc).*(Time|Wall|Minutes)", "it asks for more time than you, your account or your QOS have left"),
    ("^(QOS|Assoc).*(Submit|Jobs?)", "you, your account or your QOS have as many jobs as they may"),
    ("^(QOS|Assoc)", "it is over a limit of your account or QOS (`sacctmgr show assoc user=$USER`)"),
    ("^Max|Limit", "it is over a limit of the site"),
)
"""The same for the many reasons that name a limit."""
SHOWN_LINES = 15
LAUNCHERS = ("ChildFailedError", "CalledProcessError", "SignalException", "RendezvousClosedError")
"""Exceptions of torchrun and accelerate themselves, which say only that a process failed."""
HEAD = "Traceback (most recent call last):"
CHAINED = re.compile(r"During handling of the above exception|The above exception was the direct cause")
RANK = re.compile(r"^\[?rank ?(\d+)\]?: ?", re.IGNORECASE)
ROOT_CAUSE = re.compile(r"Root Cause.*?rank\s*:\s*(\d+)", re.DOTALL)


@dataclass(frozen=True)
class Why:
    """The answer for one stage. `start` is Slurm's estimate of a waiting job's start, or empty."""

    stage: str
    state: str
    reason: str
    explanation: str
    start: str = ""
    rank: int | None = None
    traceback: list[str] = field(default_factory=list)
    log: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        return asdict(self)


def plain_words(reason: str) -> str:
    """Slurm's reason for a job's waiting, explained; the reason itself where it is none that is known here."""
    words = reason.strip("()").split(",")[0]
    for word in (words.replace(" ", "_"), words.split(" ")[0]):
        if word in REASONS:
            return REASONS[word]
    return next((words for pattern, words in LIMITS if re.search(pattern, reason)), f"Slurm says {reason}")


def why(run: RunDir, recipe: Recipe, states: list[StageStatus], seen: Look, stage: str | None) -> Why:
    """Why a stage is as it is; by default the first one that is broken, else that waits or runs, else the last."""
    found = {each.stage: each for each in states}
    chosen = found[stage] if stage else _most_telling(states)
    if chosen.state in ("failed", "interrupted") or (chosen.attempt and chosen.state in BROKEN):
        rank, lines, log = failure(run, chosen.stage, chosen.attempt)
        return Why(chosen.stage, chosen.state, chosen.reason, _broken(chosen), "", rank, lines, log)
    if chosen.state in ("waiting", "queued", "blocked"):
        needs = [found[need] for need in dag.build(recipe, run)[chosen.stage].needs]
        explanation, start = _waiting(chosen, needs, seen)
        return Why(chosen.stage, chosen.state, chosen.reason, explanation, start)
    return Why(chosen.stage, chosen.state, chosen.reason, _broken(chosen) if chosen.state in BROKEN else "")


def _most_telling(states: list[StageStatus]) -> StageStatus:
    for wanted in ([s for s in BROKEN if s != "blocked"], ["queued", "waiting", "blocked"], ["running"]):
        for each in states:
            if each.state in wanted:
                return each
    return states[-1]


def _waiting(chosen: StageStatus, needs: list[StageStatus], seen: Look) -> tuple[str, str]:
    known = seen.jobs.get(chosen.job)
    reason = known.reason if known else ""
    words = plain_words(reason) if reason else chosen.reason
    if reason.startswith("Dependency"):
        told = [f"{need.stage} ({f'job {need.job}, ' if need.job else ''}{need.state})" for need in needs]
        words += ": " + ", ".join(each for each, need in zip(told, needs, strict=True) if need.state != "done")
    if chosen.reason.startswith("held:"):
        words = chosen.reason
    if not seen.fresh:
        return f"{words}; as of {duration(seen.age)} ago: {seen.error}", ""
    return words, start_estimate(chosen.job) if known and known.state == "PENDING" else ""


def start_estimate(job: str) -> str:
    """When Slurm expects a job to start, as it says it (local time of the site); empty where it does not know."""
    try:
        done = slurm.call(["squeue", "--start", "--noheader", "--format=%S", f"--jobs={job}"], slurm.LOOK_TIMEOUT)
    except UserError:
        return ""
    told = done.stdout.strip() if done.returncode == 0 else ""
    return "" if told in ("", "N/A") else told


def _broken(chosen: StageStatus) -> str:
    return {
        "TIMEOUT": "it reached its time limit: raise resources.STAGE.time; `retry` goes on from its last checkpoint",
        "OUT_OF_MEMORY": "it used more memory than it asked for: raise resources.STAGE.memory",
        "PREEMPTED": "another job took its place: `retry` goes on from its last checkpoint",
        "NODE_FAIL": "its node failed: `retry` goes on from its last checkpoint",
        "CANCELLED": "somebody cancelled it with scancel: `retry` submits it again",
    }.get(chosen.slurm, "").replace("STAGE", chosen.stage)


def failure(run: RunDir, stage: str, attempt: int | None) -> tuple[int | None, list[str], str]:
    """(rank, traceback or last lines, log file) of the rank that failed first in an attempt."""
    if attempt is None:
        return None, [], ""
    logs = sorted(run.attempt_log(stage, attempt).parent.glob("rank*.out"))
    texts = {path: path.read_text(encoding="utf-8", errors="replace") for path in logs}
    root = next((int(found[1]) for text in texts.values() if (found := ROOT_CAUSE.search(text))), None)
    blocks = [(rank, lines, path) for path, text in texts.items() for rank, lines in tracebacks(text, _rank_of(path))]
    own = [block for block in blocks if not block[1][-1].split(":")[0].endswith(LAUNCHERS)] or blocks
    first = next((block for block in own if block[0] == root), own[0] if own else None)
    if first:
        return first[0], first[1], str(first[2])
    if not logs:
        return None, [], ""
    return None, [line for line in texts[logs[0]].splitlines() if line.strip()][-SHOWN_LINES:], str(logs[0])


def _rank_of(log: Path) -> int:
    return int(log.stem.removeprefix("rank"))


def tracebacks(text: str, rank: int) -> list[tuple[int, list[str]]]:
    """The tracebacks of a log with the rank that each names, by default `rank`; chained ones are one."""
    found: list[tuple[int, list[str]]] = []
    open_block, chained = False, False
    for line in text.splitlines():
        named = RANK.match(line)
        who, plain = (int(named[1]), line[named.end() :]) if named else (rank, line)
        if plain.startswith(HEAD):
            if not (chained and found):
                found.append((who, []))
            found[-1][1].append(plain)
            open_block, chained = True, False
        elif open_block:
            found[-1][1].append(plain)
            open_block = not plain.strip() or plain[0] in " \t"
        elif CHAINED.search(plain) and found:
            found[-1][1].append(plain)
            chained = True
    return found
