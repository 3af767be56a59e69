"""Saves checkpoints while a Trainer trains, stops when told to, and puts a resumed Trainer back exactly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import TrainerCallback
from trl.trainer.utils import RepeatSampler

from pipeline import dag
from pipeline.recipe import Recipe
from pipeline.recipe_stage import Checkpoints
from pipeline.records import write_json
from pipeline.run import RunDir
from pipeline.training import checkpoints
from pipeline.training.entry import started
from pipeline.training.stop import StopFlag, end_stopped

INFO = "checkpoint_info.json"
"""In a checkpoint's folder, for people: its step and what was last logged."""


class Keeper(Protocol):
    """Something beside the Trainer whose state belongs into a checkpoint."""

    def save(self, folder: Path) -> None:
        """Write the state into a checkpoint's folder; called by the first process."""

    def load(self, folder: Path) -> None:
        """Take the state from a checkpoint's folder; called by every process before training."""


class CheckpointCallback(TrainerCallback):  # type: ignore[misc]
    """Saves every `every_steps` steps and when the stage shall stop; all processes decide alike.

    Add it after all other callbacks. A checkpoint holds what the Trainer saves (weights, optimizer, scheduler, random
    states, step), what it forgets (losses and metrics since the last log, the epoch of TRL's sampler), the keepers'
    state and the length of metrics.jsonl, so that a resumed stage logs every step once.
    """

    def __init__(
        self, recipe: Recipe, run: RunDir, stage: str, trainer: Any, stop: StopFlag, keepers: tuple[Keeper, ...] = ()
    ) -> None:
        self.run, self.stage, self.trainer, self.stop, self.keepers = run, stage, trainer, stop, keepers
        self.settings: Checkpoints = recipe.own(stage).checkpoint
        self.fingerprint = dag.build(recipe, run)[stage].fingerprint
        self.root = run.checkpoints(stage)
        self.found = checkpoints.newest(self.root, self.fingerprint)
        self.saved = self.found.step if self.found else 0
        self.stopping = False

    def train(self) -> None:
        """Train from the newest checkpoint, or from the beginning."""
        if self.trainer.accelerator.is_main_process:
            self.run.cut_metrics(self.stage, self.found.metrics_bytes if self.found else 0)
        self.trainer.accelerator.wait_for_everyone()
        if self.found:
            print(f"going on from the checkpoint of step {self.found.step}", flush=True)
            for keeper in self.keepers:
                keeper.load(self.found.folder)
        started()
        self.trainer.train(resume_from_checkpoint=str(self.found.folder) if self.found else None)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Put back what the Trainer forgets; stop at once when that is wanted already."""
        if self.found:
            self._load_progress(self.found.folder)
            _skip_epochs(kwargs["train_dataloader"], int(state.epoch))
        if self._agree():
            self._end(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask for a checkpoint when one is due or the stage shall stop, unless training ends here anyway."""
        self.stopping = self.stopping or self._agree()
        due = self.stopping or state.global_step - self.saved >= self.settings.every_steps
        control.should_save = due and not control.should_training_stop and self._at_boundary()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Complete the checkpoint that the Trainer just wrote, delete old ones, end when the stage shall stop."""
        folder = self.root / f"{checkpoints.PREFIX}{state.global_step}"
        self._save_progress(folder)
        if self.trainer.accelerator.is_main_process:
            last = state.log_history[-1] if state.log_history else {}
            write_json(folder / INFO, {"step": state.global_step, "epoch": state.epoch, "metrics": last})
        main = self.trainer.accelerator.is_main_process
        for keeper in self.keepers if main else ():
            keeper.save(folder)
        self.trainer.accelerator.wait_for_everyone()
        if main:
            checkpoints.seal(
                folder, step=state.global_step, world_size=args.world_size, fingerprint=self.fingerprint,
                metrics_bytes=self.run.metrics_bytes(self.stage),
            )  # fmt: skip
            checkpoints.prune(self.root, self.settings.keep)
        self.trainer.accelerator.wait_for_everyone()
        self.saved = state.global_step
        if self.stopping:
            self._end(state.global_step)

    def _end(self, step: int) -> None:
        self.trainer.accelerator.end_training()
        end_stopped(f"at step {step}")

    def _agree(self) -> bool:
        """Whether any process was told to stop: the signal may reach them between different steps."""
        told = torch.tensor([int(self.stop.is_set())], device=self.trainer.accelerator.device)
        return bool(self.trainer.accelerator.reduce(told, reduction="sum").item())

    def _at_boundary(self) -> bool:
        """Whether no rollout is half used: GRPO trains several steps on the completions of one generation."""
        if not hasattr(self.trainer, "num_iterations"):
            return True
        every = self.trainer.args.steps_per_generation * self.trainer.num_iterations
        return bool(self.trainer._step % every == 0)

    def _progress_file(self, folder: Path) -> Path:
        return folder / f"progress_{self.trainer.args.process_index}.json"

    def _save_progress(self, folder: Path) -> None:
        trainer = self.trainer
        progress = {
            "loss_since_log": trainer._tr_loss.item(),
            "loss_until_log": trainer._total_loss_scalar,
            "logged_step": trainer._globalstep_last_logged,
            "metrics": trainer._metrics["train"],
            "tokens": getattr(trainer, "_total_train_tokens", None),
        }
        self._progress_file(folder).write_text(json.dumps(progress), encoding="utf-8")

    def _load_progress(self, folder: Path) -> None:
        progress = json.loads(self._progress_file(folder).read_text(encoding="utf-8"))
        trainer = self.trainer
        trainer._tr_loss.fill_(progress["loss_since_log"])
        trainer._total_loss_scalar = progress["loss_until_log"]
        trainer._globalstep_last_logged = progress["logged_step"]
        trainer._initial_global_step = 0  # the mean loss at the end is over all steps
        trainer._metrics["train"].update(progress["metrics"])
        if progress["tokens"] is not None:
            trainer._total_train_tokens = progress["tokens"]


def _skip_epochs(dataloader: Any, epochs: int) -> None:
    """Let TRL's sampler draw the permutations of the epochs that are over: it goes by its own generator alone."""
    sampler = dataloader.batch_sampler
    while hasattr(sampler, "batch_sampler"):
        sampler = sampler.batch_sampler
    if isinstance(sampler.sampler, RepeatSampler):
        for _ in range(epochs):
            next(iter(sampler.sampler))
