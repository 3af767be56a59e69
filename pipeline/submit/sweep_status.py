"""A sweep in a few lines: the state of each trial, told by its most telling stage, and of the comparison."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from pipeline.errors import PipelineError
from pipeline.run import RunDir
from pipeline.submit.jobs import adopt_if_torn
from pipeline.submit.look import ask
from pipeline.submit.status import BROKEN, StageStatus, look_at, status_alone
from pipeline.submit.sweep import COMPARE, trial_names

TELLING = (
    tuple(state for state in BROKEN if state != "blocked"), ("running",), ("queued", "waiting"), ("blocked",),
    ("not started",),
)  # fmt: skip
"""States of a stage; the first group that a trial has a stage of tells its state."""


@dataclass(frozen=True)
class SweepStatus:
    """`trials` holds, by run, the stage that tells most; `error` is why Slurm could not be asked, or empty."""

    trials: dict[str, StageStatus]
    compare: StageStatus
    error: str

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        trials = [{"run": run, **each.as_dict()} for run, each in self.trials.items()]
        return {"trials": trials, "compare": self.compare.as_dict(), "error": self.error}

    @property
    def lines(self) -> list[StageStatus]:
        """The trials and the comparison as lines of a table of states."""
        return [*(replace(each, stage=run) for run, each in self.trials.items()), self.compare]


def sweep_status(run: RunDir) -> SweepStatus:
    """The state of a recorded sweep, after one look at the queue."""
    for name in [run.name, *trial_names(run)]:
        adopt_if_torn(RunDir(run.root, name))
    queued = ask()
    trials = {}
    for name in trial_names(run):
        trial = RunDir(run.root, name)
        states = look_at(trial, trial.read_resolved()[0], queued)[0] if trial.resolved.is_file() else []
        trials[name] = trial_status(states)
    compare = status_alone(run, COMPARE, queued)
    return SweepStatus(trials, compare, str(queued) if isinstance(queued, PipelineError) else "")


def trial_status(states: list[StageStatus]) -> StageStatus:
    """The most telling stage of a trial, its name before the reason where it is not the last one."""
    if not states:
        return StageStatus("", "not started", "", "", "", None, "")
    found = next((each for group in TELLING for each in states if each.state in group), states[-1])
    return found if found.state == "done" else replace(found, reason=f"{found.stage}: {found.reason}".rstrip(": "))
