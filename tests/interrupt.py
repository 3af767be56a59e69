"""Runs a training stage and sends one of its processes a signal at an exact moment: a fault on demand.

python tests/interrupt.py LOGS STAGE KIND SIGNAL MOMENT STEP RANK

MOMENT is `step` (the end of an optimizer step), `save` (the Trainer's files are written, the manifest is not) or
`batch` (an evaluation keeps its STEPth batch of answers).
"""

from __future__ import annotations

import importlib
import itertools
import os
import signal
import sys
from pathlib import Path
from typing import Any

from pipeline.training.ranks import rank


def main(logs: str, stage: str, kind: str, name: str, moment: str, step: str, target: str) -> None:
    """Train with a callback that sends the signal before the stage's own looks whether it shall stop."""
    from pipeline.evaluation.partial import PartialAnswers
    from pipeline.training.resume import CheckpointCallback

    owner, event = {
        "step": (CheckpointCallback, "on_step_end"),
        "save": (CheckpointCallback, "on_save"),
        "batch": (PartialAnswers, "add"),
    }[moment]
    own = getattr(owner, event)
    calls = itertools.count(1)

    def interrupted(self: Any, *args: Any, **kwargs: Any) -> None:
        reached = next(calls) if moment == "batch" else args[1].global_step
        if reached == int(step) and rank() == int(target):
            os.kill(os.getpid(), signal.Signals[name])
        own(self, *args, **kwargs)

    setattr(owner, event, interrupted)
    importlib.import_module(f"pipeline.stages.{kind}").main(Path(logs), stage)


if __name__ == "__main__":
    main(*sys.argv[1:])
