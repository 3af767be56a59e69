"""Measures a contrastive stage on held-out triplets every few steps, keeps the best weights, stops early."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from pipeline.recipe_contrastive import PARTS, Contrastive
from pipeline.run import RunDir
from pipeline.training.callbacks import HealthCallback
from pipeline.training.contrastive import Objective, causal_metrics, passed
from pipeline.training.contrastive_trainer import TripletCollator

STATE = ("best", "best_step", "waited", "measured")
BEST_WEIGHTS = "best.safetensors"
FALLING = ("loss", "task_loss")
"""Metrics that are better when they are lower."""


def measure(
    model: Any, rows: Sequence[dict[str, Any]], own: Contrastive, objective: Objective, pad: int, device: Any
) -> Counter[str]:
    """Sums over triplets of the losses and the causal metrics, and `rows`; the model's mode is put back afterwards."""
    collator = TripletCollator(own, pad, PARTS)
    sums: Counter[str] = Counter()
    was_training = model.training
    model.eval()
    with torch.no_grad():
        for first in range(0, len(rows), own.validation.batch_size):
            batch = collator(rows[first : first + own.validation.batch_size])
            passes = [_on(each, device) for each in batch["passes"]]
            found = passed(model, passes, own.representation)
            contrast, parts = objective.contrast(found.representations)
            task = found.task.mean()
            values = {"loss": contrast + own.loss.lambda_task * task, "task_loss": task}
            for name, value in {**values, **parts, **causal_metrics(found.representations)}.items():
                sums[name] += float(value) * batch["rows"]
            sums["rows"] += batch["rows"]
    model.train(was_training)
    return sums


def _on(batch: dict[str, Any], device: Any) -> dict[str, Any]:
    return {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in batch.items()}


class ValidationCallback(TrainerCallback):  # type: ignore[misc]
    """Validation, the best weights (those the stage began with included) and early stopping, over resumes.

    Each process measures every n-th row; all get the same numbers.
    """

    def __init__(
        self, run: RunDir, stage: str, own: Contrastive, health: HealthCallback, trainer: Any, pad: int,
        rows: Sequence[dict[str, Any]],
    ) -> None:  # fmt: skip
        self.run, self.stage, self.own, self.health, self.trainer, self.pad = run, stage, own, health, trainer, pad
        self.rows = list(rows)[: own.validation.rows]
        self.best, self.best_step, self.waited, self.measured = -math.inf, 0, 0, -1
        self.weights: dict[str, torch.Tensor] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure the model that the stage begins with, unless the stage goes on from a checkpoint."""
        if self.measured < 0:
            self._look(state)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure when it is due; end training after `patience` measurements in a row without a gain."""
        if state.global_step % self.own.validation.every_steps:
            return
        self._look(state)
        stopping = self.own.early_stopping
        if stopping.stops and self.waited >= stopping.patience:
            if state.is_world_process_zero:
                print(f"early stopping: {stopping.metric} has gained nothing in {self.waited} measurements", flush=True)
            control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure the last step unless it just was."""
        if self.measured != state.global_step:
            self._look(state)

    def _look(self, state: Any) -> None:
        """Measure, log, and keep a copy of the trained weights when they are the best so far."""
        self.measured = state.global_step
        values = self._measured()
        if state.is_world_process_zero:
            told = {f"val_{name}": value for name, value in values.items()}
            self.run.log_metrics(self.stage, {"step": state.global_step, **told})
            self.health.look(values, state.global_step)
            print(f"step {state.global_step}: " + ", ".join(f"{k} {v:.4f}" for k, v in told.items()), flush=True)
        metric = self.own.early_stopping.metric
        now = -values[metric] if metric in FALLING else values[metric]
        gained = now > self.best + (self.own.early_stopping.min_delta if self.weights else 0.0)
        self.waited = 0 if gained else self.waited + 1
        if gained or not self.weights:
            self.best, self.best_step = now, state.global_step
            model = self.trainer.accelerator.unwrap_model(self.trainer.model)
            self.weights = {n: p.detach().to("cpu", copy=True) for n, p in model.named_parameters() if p.requires_grad}

    def _measured(self) -> dict[str, float]:
        """Means over the validation rows, of all processes."""
        args = self.trainer.args
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        own_rows = self.rows[args.process_index :: args.world_size]
        sums = measure(model, own_rows, self.own, self.trainer.objective, self.pad, args.device)
        names = sorted(sums.keys() - {"rows"})
        totals = torch.tensor([sums[name] for name in [*names, "rows"]], dtype=torch.float32, device=args.device)
        *totals, rows = self.trainer.accelerator.reduce(totals, reduction="sum").tolist()
        return {name: total / rows for name, total in zip(names, totals, strict=True)}

    def save(self, folder: Path) -> None:
        """Write the numbers and the best weights into a checkpoint's folder."""
        facts = {key: getattr(self, key) for key in STATE}
        (folder / "validation.json").write_text(json.dumps(facts), encoding="utf-8")
        save_file(self.weights, folder / BEST_WEIGHTS)

    def load(self, folder: Path) -> None:
        """Take the numbers and the best weights from a checkpoint's folder."""
        for key, value in json.loads((folder / "validation.json").read_text(encoding="utf-8")).items():
            setattr(self, key, value)
        self.weights = load_file(folder / BEST_WEIGHTS)

    def restore_best(self) -> None:
        """Put the best weights back, so that they are what is saved, unless the recipe wants the last ones."""
        if not self.own.early_stopping.keeps_best:
            return
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in self.weights:
                    parameter.copy_(self.weights[name])
        if self.trainer.accelerator.is_main_process:
            print(f"kept the weights of step {self.best_step}", flush=True)
            self.run.log_metrics(self.stage, {"best_step": self.best_step})
