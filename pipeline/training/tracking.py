"""Weights & Biases in the training stages: offline unless told otherwise, one run over all attempts of a stage."""

from __future__ import annotations

import hashlib
import math
import os
from typing import Any

from transformers import TrainerCallback
from transformers.integrations import WandbCallback

from pipeline.load import dump_recipe
from pipeline.recipe import Recipe
from pipeline.run import RunDir


def tracking_id(run: RunDir, stage: str, fingerprint: str) -> str:
    """The id of a stage's W&B run: the same over requeues and retries, another for other settings, data or code."""
    return hashlib.sha256(run.comment(stage, fingerprint).encode()).hexdigest()[:16]


def track(trainer: Any, recipe: Recipe, run: RunDir, stage: str, fingerprint: str) -> None:
    """Let a trainer report to W&B, where the recipe asks for it.

    The trainer's own callback goes: it begins a new run at every attempt and counts steps anew.
    """
    if "wandb" in recipe.tracking.report_to:
        trainer.remove_callback(WandbCallback)
        trainer.add_callback(TrackingCallback(recipe, run, stage, tracking_id(run, stage, fingerprint)))


class TrackingCallback(TrainerCallback):  # type: ignore[misc]
    """Logs what the trainer logs, at the trainer's step, so that the attempts of a stage make one history."""

    def __init__(self, recipe: Recipe, run: RunDir, stage: str, identity: str) -> None:
        self.recipe, self.run, self.stage, self.identity = recipe, run, stage, identity
        self.tracker: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin the run or go on with it. Its files lie in the stage's folder; `sync` sends them."""
        if not state.is_world_process_zero:
            return
        import wandb

        self.tracker = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or self.recipe.tracking.project,
            id=self.identity,
            resume="allow",
            name=f"{self.run.name}-{self.stage}",
            group=self.run.name,
            job_type=self.stage,
            dir=str(self.run.stage(self.stage)),
            mode=os.environ.get("WANDB_MODE") or "offline",  # type: ignore[arg-type]
            config=dump_recipe(self.recipe),
            # addresses of repositories, programs and output may hold what nobody meant to publish
            settings=wandb.Settings(console="off", disable_git=True, disable_code=True, x_disable_meta=True),
        )

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Send the numbers of one log."""
        if self.tracker is not None and logs:
            values = {key: value for key, value in logs.items() if isinstance(value, int | float)}
            finite = {key: value for key, value in values.items() if math.isfinite(value)}
            self.tracker.log(finite, step=state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End the run. A stage that stops before leaves that to the end of its process."""
        if self.tracker is not None:
            self.tracker.finish()
