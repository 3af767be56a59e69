"""Keeps a stage from ruining a good model: dev rows every few steps, the best weights kept, collapse stopped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from pipeline.evaluation.generate import Completion, complete
from pipeline.recipe_rl import Guard
from pipeline.run import RunDir
from pipeline.stages.dev import Row, dev_metric, dev_values
from pipeline.training.callbacks import HealthCallback

STATE = ("best_value", "best_step", "first", "kept", "measured")
BEST_WEIGHTS = "guard.safetensors"


@dataclass(frozen=True)
class Asking:
    """How dev rows are put to the model."""

    tokenizer: Any
    longest: int
    """Most tokens of an answer."""
    batch_size: int

    def completions(self, model: Any, rows: Sequence[Row], seed: int, temperature: float = 0.0) -> list[Completion]:
        """The model's answers, greedy ones unless a temperature is given."""
        return complete(
            model, self.tokenizer, [str(row["prompt"]) for row in rows], max_new_tokens=self.longest,
            batch_size=self.batch_size, temperature=temperature, seed=seed,
        )  # fmt: skip

    def values(self, model: Any, rows: Sequence[Row], seed: int) -> dict[str, float]:
        """Metrics of the model's greedy answers, by the names under which they are logged."""
        return dev_values(rows, [one.text for one in self.completions(model, rows, seed)])


def before_and_after(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """Dev metrics of what a stage began with and of what it made, under one name each."""
    told = {"before": before, "after": after}
    return {
        f"{when}_{key.removeprefix('dev_')}": value for when, values in told.items() for key, value in values.items()
    }


class GuardCallback(TrainerCallback):  # type: ignore[misc]
    """Measures F1 of the valid class, or accuracy, on fixed dev rows by greedy decoding; never sees the test rows.

    The best weights so far, those the stage began with included, become the stage's output. All
    processes generate (the model may be sharded) and get the same numbers.
    """

    def __init__(
        self,
        run: RunDir,
        stage: str,
        guard: Guard,
        health: HealthCallback,
        trainer: Any,
        asking: Asking,
        rows: list[dict[str, Any]],
    ) -> None:
        self.run, self.stage, self.guard, self.health = run, stage, guard, health
        self.trainer, self.asking, self.rows = trainer, asking, rows[: guard.rows]
        self.metric = dev_metric(self.rows)
        self.best_value, self.best_step = -1.0, 0
        self.first: dict[str, float] = {}
        self.kept: dict[str, float] = {}
        self.best: dict[str, torch.Tensor] = {}
        self.measured = -1

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure the model that the stage begins with, unless the stage goes on from a checkpoint."""
        if self.measured < 0:
            self.first = self.measure(state)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure every `every_steps` steps; end training when the model has collapsed."""
        if state.global_step % self.guard.every_steps:
            return
        value, first = (values[f"dev_{self.metric}"] for values in (self.measure(state), self.first))
        if value < self.guard.stop_below * first:
            print(
                f"warning: dev {self.metric} fell from {first:.3f} to {value:.3f}: training ends, "
                f"the weights of step {self.best_step} are kept",
                flush=True,
            )
            control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure the last step unless it just was."""
        if self.measured != state.global_step:
            self.measure(state)

    def measure(self, state: Any) -> dict[str, float]:
        """The dev metrics of the weights as they are; keeps a copy of these when they are the best so far."""
        self.measured = state.global_step
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        values = self.asking.values(model, self.rows, self.trainer.args.seed)
        if state.is_world_process_zero:
            self.run.log_metrics(self.stage, {"step": state.global_step, **values})
            self.health.look(values, state.global_step)
            told = ", ".join(f"{key.removeprefix('dev_').replace('_', ' ')} {each:.3f}" for key, each in values.items())
            print(f"step {state.global_step}: dev {told}", flush=True)
        if values[f"dev_{self.metric}"] > self.best_value:
            self.best_value, self.best_step, self.kept = values[f"dev_{self.metric}"], state.global_step, values
            self.best = {n: p.detach().to("cpu", copy=True) for n, p in model.named_parameters() if p.requires_grad}
        return values

    def save(self, folder: Path) -> None:
        """Write the numbers and the best weights into a checkpoint's folder."""
        facts = {key: getattr(self, key) for key in STATE}
        (folder / "guard.json").write_text(json.dumps(facts), encoding="utf-8")
        save_file(self.best, folder / BEST_WEIGHTS)

    def load(self, folder: Path) -> None:
        """Take the numbers and the best weights from a checkpoint's folder."""
        for key, value in json.loads((folder / "guard.json").read_text(encoding="utf-8")).items():
            setattr(self, key, value)
        self.best = load_file(folder / BEST_WEIGHTS)

    def finish(self) -> None:
        """Put the best weights back, so that they are what is saved."""
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in self.best:
                    parameter.copy_(self.best[name])
        if not self.trainer.accelerator.is_main_process:
            return
        best = {"best_step": self.best_step, f"best_dev_{self.metric}": self.best_value}
        self.run.log_metrics(self.stage, {**best, **before_and_after(self.first, self.kept)})
        print(f"kept the weights of step {self.best_step}, dev {self.metric} {self.best_value:.3f}", flush=True)
