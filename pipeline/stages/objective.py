"""What a stage is to raise, measured before its first step and after its last one, and logged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from pipeline.run import RunDir
from pipeline.stages.guard import before_and_after
from pipeline.training.ranks import rank

FILE = "objective.json"


class ObjectiveCallback(TrainerCallback):  # type: ignore[misc]
    """Measures the model that the stage begins with; `finish` measures the one that it made."""

    def __init__(
        self, run: RunDir, stage: str, measure: Callable[[], dict[str, float]], figures: dict[str, float] | None = None
    ) -> None:
        """`figures` about the rows are logged at the beginning."""
        self.run, self.stage, self.measure, self.figures = run, stage, measure, figures or {}
        self.before: dict[str, float] | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure the model that the stage begins with, unless the stage goes on from a checkpoint."""
        if self.before is not None:
            return
        self.before = self.measure()
        if self.figures and rank() == 0:
            self.run.log_metrics(self.stage, {"step": 0, **self.figures})
            print(", ".join(f"{key} {value:.6g}" for key, value in self.figures.items()), flush=True)

    def finish(self) -> None:
        """Measure the model that is saved, and log both."""
        values = before_and_after(self.before or {}, self.measure())
        if rank():
            return
        self.run.log_metrics(self.stage, values)
        print("held out: " + ", ".join(f"{key} {value:.3f}" for key, value in values.items()), flush=True)

    def save(self, folder: Path) -> None:
        """Write what was measured at first into a checkpoint's folder."""
        (folder / FILE).write_text(json.dumps(self.before), encoding="utf-8")

    def load(self, folder: Path) -> None:
        """Take what was measured at first from a checkpoint's folder."""
        self.before = json.loads((folder / FILE).read_text(encoding="utf-8"))
