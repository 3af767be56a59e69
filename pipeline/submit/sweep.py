"""A sweep: one recipe run with every combination of the values given, each trial an ordinary run; what it consists of.

The sweep has a folder of logs and one of results like a run; its record there names the trials.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.cluster import ClusterFile
from pipeline.errors import UserError
from pipeline.recipe import Recipe
from pipeline.records import read_json, write_json
from pipeline.run import RunDir, now
from pipeline.settings import collect, listed_texts
from pipeline.submit.start import resolve

COMPARE = "compare"
"""The sweep's last stage: it puts the results of the trials side by side."""
LONGEST = 64
"""Characters of a run's name."""


@dataclass(frozen=True)
class Trial:
    """One run of a sweep and the overrides by which it differs from the others."""

    run: RunDir
    recipe: Recipe
    changes: tuple[str, ...]


@dataclass(frozen=True)
class Sweep:
    """`run` is the place of the sweep's own records; `cluster` the site as the trials' jobs see it."""

    run: RunDir
    cluster: ClusterFile
    trials: tuple[Trial, ...]


def as_trial(cluster: ClusterFile) -> ClusterFile:
    """The site as the jobs of trials see it: Slurm takes out what cannot start, and the next trial's turn comes."""
    return cluster.model_copy(update={"kill_on_invalid_dep": True})


def combinations(words: Sequence[str]) -> list[tuple[str, ...]]:
    """`a.b=1,2` and `c=x,y` as overrides: every value of one with every value of the others, the last varying fastest.

    Raises UserError for a word that is no list of values, a key that stands twice and equal values.
    """
    axes: dict[str, list[str]] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not all(key.split(".")) or key in axes:
            what = "swept twice" if key in axes else "not a sweep"
            raise UserError(what, value=word, where="--sweep", do="write section.key=VALUE,VALUE,... once a key")
        axes[key] = listed_texts(text, f"--sweep {word}")
        if len(set(axes[key])) < len(axes[key]):
            raise UserError("a value stands twice", value=word, where="--sweep", do="give each value once")
    return list(itertools.product(*([f"{key}={text}" for text in texts] for key, texts in axes.items())))


def trial_name(base: str, changes: Sequence[str]) -> str:
    """The run name of a trial: `phi3-sft.learning_rate-1e-5`.

    What a name cannot hold becomes a hyphen, what is too long is cut; a hash of the changes then keeps it distinct.
    """
    words = "-".join(change.replace("=", "-", 1) for change in changes)
    name = f"{base}-{re.sub(r'[^A-Za-z0-9._-]+', '-', words)}"
    if name == f"{base}-{words}" and len(name) <= LONGEST:
        return name
    mark = hashlib.sha256("\0".join(changes).encode()).hexdigest()[:6]
    return f"{name[: LONGEST - len(mark) - 1]}-{mark}"


def make_sweep(
    word: str, overrides: Sequence[str], swept: Sequence[str], name: str | None, model: str | None = None
) -> Sweep:
    """The trials of a sweep over a recipe, all of them checked. Raises UserErrors. Writes nothing.

    The sweep is called `name`, by default RECIPE-sweep; the trials begin with `name` or the recipe's name.
    """
    recipe, _, cluster = resolve(word, overrides, name, model)
    trials: list[Trial] = []

    def add(changes: tuple[str, ...]) -> None:
        settings, run, _ = resolve(word, [*overrides, *changes], trial_name(name or recipe.name, changes), model)
        trials.append(Trial(run, settings, changes))

    collect([partial(add, changes) for changes in combinations(swept)])
    run = RunDir(trials[0].run.root, name or f"{recipe.name}-sweep")
    _refuse_another(run, [trial.run.name for trial in trials])
    return Sweep(run, as_trial(cluster), tuple(trials))


def _refuse_another(run: RunDir, trials: Sequence[str]) -> None:
    """A sweep may grow, not become another one. Raises UserError."""
    if run.resolved.is_file():
        raise UserError("a run has this name", value=run.name, where=str(run.logs), do="choose another --run-name")
    lost = [name for name in trial_names(run) if name not in trials]
    if lost:
        raise UserError(
            "a sweep of this name has other trials", value=lost, where=str(record_file(run)),
            do="give its values too, or choose another --run-name",
        )  # fmt: skip


def record_file(run: RunDir) -> Path:
    """What the sweep of this name consists of; a run that is no sweep has none."""
    return run.logs / "sweep.json"


def write_sweep(sweep: Sweep) -> None:
    """Record what a sweep consists of, before anything of it starts."""
    trials = [{"run": trial.run.name, "changes": list(trial.changes)} for trial in sweep.trials]
    write_json(record_file(sweep.run), {"written": now(), "trials": trials})


def is_sweep(run: RunDir) -> bool:
    """Whether a name is that of a sweep."""
    return record_file(run).is_file()


def recorded_trials(run: RunDir) -> list[tuple[RunDir, tuple[str, ...]]]:
    """The runs of a recorded sweep, each with its changes; none when there is no such sweep."""
    record: dict[str, Any] = read_json(record_file(run)) or {"trials": []}
    return [(RunDir(run.root, str(each["run"])), tuple(each["changes"])) for each in record["trials"]]


def refuse_sweep(run: RunDir) -> None:
    """Raises UserError when a run's name is that of a sweep."""
    if is_sweep(run):
        raise UserError("a sweep has this name", value=run.name, where=str(run.logs), do="choose another --run-name")


def trial_names(run: RunDir) -> list[str]:
    """Names of the runs of a recorded sweep."""
    return [trial.name for trial, _ in recorded_trials(run)]


def read_sweep(run: RunDir, cluster: ClusterFile) -> Sweep:
    """A recorded sweep, without the trials that were never launched."""
    launched = [(trial, changes) for trial, changes in recorded_trials(run) if trial.resolved.is_file()]
    trials = tuple(Trial(trial, trial.read_resolved()[0], changes) for trial, changes in launched)
    return Sweep(run, as_trial(cluster), trials)


def sweep_of(run: RunDir) -> RunDir | None:
    """The sweep that launched a run last, if one did."""
    name = run.read_resolved()[1].get("sweep")
    sweep = RunDir(run.root, str(name)) if name else None
    return sweep if sweep and run.name in trial_names(sweep) else None


def results_page(run: RunDir) -> Path:
    """Where the comparison of a sweep's trials stands."""
    return run.results / "compare.html"


def results_table(run: RunDir) -> Path:
    """The same for programs: the trials, their settings and numbers."""
    return run.results / "trials.json"
