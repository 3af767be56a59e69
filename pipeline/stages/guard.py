"""Keeps GRPO from ruining a good model: dev rows every few steps, the best weights kept, collapse stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from pipeline.evaluation.generate import complete
from pipeline.recipe import Guard
from pipeline.run import RunDir
from pipeline.stages.dev import dev_metric, dev_values
from pipeline.training.callbacks import HealthCallback

STATE = ("best_value", "best_step", "first_value", "measured")
BEST_WEIGHTS = "guard.safetensors"


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
        tokenizer: Any,
        rows: list[dict[str, Any]],
    ) -> None:
        self.run, self.stage, self.guard, self.health = run, stage, guard, health
        self.trainer, self.tokenizer, self.rows = trainer, tokenizer, rows[: guard.rows]
        self.metric = dev_metric(self.rows)
        self.best_value, self.best_step, self.first_value = -1.0, 0, 0.0
        self.best: dict[str, torch.Tensor] = {}
        self.measured = -1

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure the model that the stage begins with, unless the stage goes on from a checkpoint."""
        if self.measured < 0:
            self.first_value = self.measure(state)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure every `every_steps` steps; end training when the model has collapsed."""
        if state.global_step % self.guard.every_steps:
            return
        value = self.measure(state)
        if value < self.guard.stop_below * self.first_value:
            print(
                f"warning: dev {self.metric} fell from {self.first_value:.3f} to {value:.3f}: training ends, "
                f"the weights of step {self.best_step} are kept",
                flush=True,
            )
            control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure the last step unless it just was."""
        if self.measured != state.global_step:
            self.measure(state)

    def measure(self, state: Any) -> float:
        """The dev metric of the weights as they are; keeps a copy of them when it is the highest so far."""
        self.measured = state.global_step
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        completions = complete(
            model,
            self.tokenizer,
            [row["prompt"] for row in self.rows],
            max_new_tokens=self.trainer.args.max_completion_length,
            batch_size=self.trainer.args.per_device_train_batch_size,
            temperature=0.0,
            seed=self.trainer.args.seed,
        )
        values = dev_values(self.rows, [one.text for one in completions])
        value = values[f"dev_{self.metric}"]
        if state.is_world_process_zero:
            self.run.log_metrics(self.stage, {"step": state.global_step, **values})
            self.health.look(values, state.global_step)
            told = ", ".join(f"{key.removeprefix('dev_').replace('_', ' ')} {each:.3f}" for key, each in values.items())
            print(f"step {state.global_step}: dev {told}", flush=True)
        if value > self.best_value:
            self.best_value, self.best_step = value, state.global_step
            self.best = {n: p.detach().to("cpu", copy=True) for n, p in model.named_parameters() if p.requires_grad}
        return value

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

    def restore_best(self) -> None:
        """Put the best weights back, so that they are what is saved."""
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in self.best:
                    parameter.copy_(self.best[name])
        if not self.trainer.accelerator.is_main_process:
            return
        self.run.log_metrics(self.stage, {"best_step": self.best_step, f"best_dev_{self.metric}": self.best_value})
        print(f"kept the weights of step {self.best_step}, dev {self.metric} {self.best_value:.3f}", flush=True)
