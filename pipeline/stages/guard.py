"""Keeps GRPO from ruining a good model: dev F1 every few steps, the best weights kept, collapse stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from pipeline.evaluation.generate import complete
from pipeline.evaluation.metrics import f1_score
from pipeline.recipe import Guard
from pipeline.run import RunDir
from pipeline.tasks.corr2cause import score
from pipeline.training.callbacks import HealthCallback

STATE = ("best_f1", "best_step", "first_f1", "measured")
BEST_WEIGHTS = "guard.safetensors"


class GuardCallback(TrainerCallback):  # type: ignore[misc]
    """Measures F1 of the valid class on fixed dev rows by greedy decoding; never sees the test rows.

    The weights with the highest dev F1 so far, those the stage began with included, become the stage's output. All
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
        self.best_f1, self.best_step, self.first_f1 = -1.0, 0, 0.0
        self.best: dict[str, torch.Tensor] = {}
        self.measured = -1

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure the model that the stage begins with, unless the stage goes on from a checkpoint."""
        if self.measured < 0:
            self.first_f1 = self.measure(state)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure every `every_steps` steps; end training when the model has collapsed."""
        if state.global_step % self.guard.every_steps:
            return
        f1 = self.measure(state)
        if f1 < self.guard.stop_below * self.first_f1:
            print(
                f"warning: dev F1 fell from {self.first_f1:.3f} to {f1:.3f}: training ends, "
                f"the weights of step {self.best_step} are kept",
                flush=True,
            )
            control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure the last step unless it just was."""
        if self.measured != state.global_step:
            self.measure(state)

    def measure(self, state: Any) -> float:
        """Dev F1 of the weights as they are; keeps a copy of them when it is the highest so far."""
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
        scores = [score(one.text, row) for one, row in zip(completions, self.rows, strict=True)]
        f1 = f1_score([one.parsed for one in scores], [row["label"] for row in self.rows])
        yes, no, none = (sum(one.parsed == each for one in scores) / len(scores) for each in ("yes", "no", None))
        true = sum(one.true_share for one in scores) / len(scores)
        if state.is_world_process_zero:
            values = {"dev_f1": f1, "dev_share_yes": yes, "dev_share_no": no, "dev_unparsable": none}
            values |= {"dev_true_steps": true}
            self.run.log_metrics(self.stage, {"step": state.global_step, **values})
            self.health.look(values, state.global_step)
            print(f"step {state.global_step}: dev F1 {f1:.3f}, {yes:.0%} yes, {true:.0%} true steps", flush=True)
        if f1 > self.best_f1:
            self.best_f1, self.best_step = f1, state.global_step
            self.best = {n: p.detach().to("cpu", copy=True) for n, p in model.named_parameters() if p.requires_grad}
        return f1

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
        self.run.log_metrics(self.stage, {"best_step": self.best_step, "best_dev_f1": self.best_f1})
        print(f"kept the weights of step {self.best_step}, dev F1 {self.best_f1:.3f}", flush=True)
