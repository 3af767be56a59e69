"""Weights & Biases in the training stages: offline unless told otherwise, one run over all attempts of a stage."""

from __future__ import annotations

import hashlib
import math
import os
from typing import Any

from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback, WandbCallback

from pipeline.load import dump_recipe
from pipeline.recipe import Recipe
from pipeline.run import RunDir


def tracking_id(run: RunDir, stage: str, fingerprint: str) -> str:
    """The id of a stage's W&B run: the same over requeues and retries, another for other settings, data or code."""
    return hashlib.sha256(run.comment(stage, fingerprint).encode()).hexdigest()[:16]


def tracked_name(recipe: Recipe, run: RunDir, stage: str) -> str:
    """Name of a stage's run where it is tracked: the recipe's, or that of run and stage."""
    name = recipe.tracking.run_name
    if name is None:
        return f"{run.name}-{stage}"
    return name if len(recipe.training_stages()) == 1 else f"{name}-{stage}"


def track(trainer: Any, recipe: Recipe, run: RunDir, stage: str, fingerprint: str) -> None:
    """Let a trainer report to W&B and TensorBoard, where the recipe asks for it.

    The trainer's own callbacks go: that for W&B begins a new run at every attempt and counts steps anew, that for
    TensorBoard writes among the checkpoints, which are deleted in the end.
    """
    if "tensorboard" in recipe.tracking.report_to:
        from torch.utils.tensorboard import SummaryWriter

        trainer.remove_callback(TensorBoardCallback)
        writer = SummaryWriter(str(run.tensorboard(stage))) if trainer.accelerator.is_main_process else None
        trainer.add_callback(TensorBoardCallback(writer))
    if "wandb" in recipe.tracking.report_to:
        trainer.remove_callback(WandbCallback)
        trainer.add_callback(TrackingCallback(recipe, run, stage, tracking_id(run, stage, fingerprint)))


class TrackingCallback(TrainerCallback):  # type: ignore[misc]
    """Logs what the trainer logs, at the trainer's step, so that the attempts of a stage make one history.

    Offline every attempt begins with all that metrics.jsonl holds: an attempt that is killed loses what wandb had not
    written yet, and the newest folder alone is the whole history, each step once.
    """

    def __init__(self, recipe: Recipe, run: RunDir, stage: str, identity: str) -> None:
        self.recipe, self.run, self.stage, self.identity = recipe, run, stage, identity
        self.tracker: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin the run or go on with it. Its files lie in the stage's folder; `sync` sends them."""
        if not state.is_world_process_zero:
            return
        import wandb

        mode = os.environ.get("WANDB_MODE") or self.recipe.tracking.mode
        self.tracker = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or self.recipe.tracking.project,
            id=self.identity,
            resume="allow" if mode == "online" else None,
            name=tracked_name(self.recipe, self.run, self.stage),
            group=self.run.name,
            job_type=self.stage,
            dir=str(self.run.stage(self.stage)),
            mode=mode,  # type: ignore[arg-type]
            config=dump_recipe(self.recipe),
            # addresses of repositories, programs and output may hold what nobody meant to publish
            settings=wandb.Settings(console="off", disable_git=True, disable_code=True, x_disable_meta=True),
        )
        for line in self.run.read_metrics(self.stage) if mode != "online" else []:
            if "step" in line:
                self._send({key: value for key, value in line.items() if key != "step"}, line["step"])

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Send the numbers of one log."""
        if self.tracker is not None and logs:
            self._send(logs, state.global_step)

    def _send(self, values: dict[str, Any], step: int) -> None:
        numbers = {key: value for key, value in values.items() if isinstance(value, int | float)}
        self.tracker.log({key: value for key, value in numbers.items() if math.isfinite(value)}, step=step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End the run. A stage that stops before leaves that to the end of its process."""
        if self.tracker is not None:
            self.tracker.finish()
