"""Verbs that use a trained model: merge, chat, infer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Annotated

import typer

from pipeline import show
from pipeline.cluster import load_cluster, variables
from pipeline.records import read_json
from pipeline.run import HOME, RunDir
from pipeline.training.hub import OFFLINE
from pipeline.verbs.arguments import AsJson, RunArgument, check_model, open_run, print_json, words_to_stderr

StageOrBase = Annotated[str, typer.Argument(help="a training stage, or `base` for a model from scratch")]


def merge(name: RunArgument, stage: StageOrBase, as_json: AsJson = False) -> None:
    """Fold a stage's adapter into its base model, and say how far the result is from the two."""
    words_to_stderr(as_json)
    folder = _run_with(name, stage)
    _work(["-m", "pipeline.training.merge", str(folder.logs), stage], quiet=as_json)
    if as_json:
        print_json({"run": name, **(read_json(folder.merged(stage) / "merge.json") or {})})


def chat(name: RunArgument, stage: StageOrBase) -> None:
    """Talk with a stage's model; its answers come as they are written."""
    folder = _run_with(name, stage)
    _work(["-m", "pipeline.training.answer", str(folder.logs), stage, "chat"])


def infer(
    name: RunArgument,
    stage: StageOrBase,
    premise: Annotated[str | None, typer.Option(help="a premise in the wording of Corr2Cause")] = None,
    hypothesis: Annotated[str | None, typer.Option(help="the claim to be judged")] = None,
) -> None:
    """Answer a premise and hypothesis, or each JSON line of standard input; the exact engine judges the answer."""
    folder = _run_with(name, stage)
    row = json.dumps({"premise": premise, "hypothesis": hypothesis}) + "\n" if premise and hypothesis else None
    if row is None and sys.stdin.isatty():
        show.console.print("reading JSON lines from standard input; Ctrl-D ends")
    _work(["-m", "pipeline.training.answer", str(folder.logs), stage, "infer"], row)


def _run_with(name: str, stage: str) -> RunDir:
    folder, settings = open_run(name)
    check_model(folder, settings, stage)
    return folder


def _work(words: list[str], text: str | None = None, *, quiet: bool = False) -> None:
    """Do the work in a process of its own, which imports torch. Ends with its exit code when that is not 0."""
    environment = {**OFFLINE, **os.environ, **variables(load_cluster())}
    done = subprocess.run(
        [sys.executable, *words], cwd=HOME, env=environment, input=text, text=True, check=False,
        stdout=sys.stderr if quiet else None,
    )  # fmt: skip
    if done.returncode:
        sys.exit(done.returncode if done.returncode in (2, 3) else 1)
