"""Runs a training stage and sends one of its processes a signal at an exact moment: a fault on demand.

python tests/interrupt.py LOGS STAGE KIND SIGNAL MOMENT STEP RANK

MOMENT is `step` (the end of an optimizer step) or `save` (the Trainer's files are written, the manifest is not).
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from pathlib import Path
from typing import Any

from pipeline.training.ranks import rank


def main(logs: str, stage: str, kind: str, name: str, moment: str, step: str, target: str) -> None:
    """Train with a callback that sends the signal before the stage's own looks whether it shall stop."""
    from pipeline.training.resume import CheckpointCallback

    event = {"step": "on_step_end", "save": "on_save"}[moment]
    own = getattr(CheckpointCallback, event)

    def interrupted(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == int(step) and rank() == int(target):
            os.kill(os.getpid(), signal.Signals[name])
        own(self, args, state, control, **kwargs)

    setattr(CheckpointCallback, event, interrupted)
    importlib.import_module(f"pipeline.stages.{kind}").main(Path(logs), stage)


if __name__ == "__main__":
    main(*sys.argv[1:])
