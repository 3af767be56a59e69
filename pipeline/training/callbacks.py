"""Trainer callbacks that every training stage shares: metrics, progress, health."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from pipeline.errors import StageFailed
from pipeline.recipe import Health
from pipeline.run import RunDir
from pipeline.training.peaks import machine, peaks

PROGRESS_SECONDS = 10.0
TOLD = "health.json"
SHOWN = (
    "loss",
    "reward",
    "rewards/accuracies",
    "rewards/margins",
    "kl",
    "value_loss",
    "dev_f1",
    "dev_accuracy",
    "share_yes",
    "true_steps",
    "grad_norm",
    "learning_rate",
)


class MetricsCallback(TrainerCallback):  # type: ignore[misc]
    """Writes every log of the trainer to metrics.jsonl and, at most every ten seconds, a progress line to the log."""

    def __init__(self, run: RunDir, stage: str) -> None:
        self.run, self.stage = run, stage
        self.started = time.monotonic()
        self.printed = -PROGRESS_SECONDS

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Record the GPU that the stage trains on, where there is one."""
        found = machine(args) if state.is_world_process_zero else {}
        if found:
            self.run.log_metrics(self.stage, {"step": state.global_step, **found})

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Record and print what the trainer logs; on a GPU also the most memory so far."""
        if not state.is_world_process_zero or not logs:
            return
        values = {key: value for key, value in logs.items() if isinstance(value, int | float) and math.isfinite(value)}
        self.run.log_metrics(self.stage, {"step": state.global_step, **values, **peaks()})
        elapsed = time.monotonic() - self.started
        if elapsed - self.printed >= PROGRESS_SECONDS or state.global_step >= state.max_steps:
            self.printed = elapsed
            shown = "  ".join(f"{key} {values[key]:.4g}" for key in SHOWN if key in values)
            print(f"step {state.global_step}/{state.max_steps}  {elapsed:.0f} s  {shown}", flush=True)


class HealthCallback(TrainerCallback):  # type: ignore[misc]
    """Says when training goes wrong: loss or gradient not finite, no gradient, KL too high, one-sided answers.

    Raises StageFailed instead when the recipe's `health.stop` is true. Says each thing once, also over resumes.
    """

    def __init__(self, run: RunDir, stage: str, health: Health) -> None:
        self.run, self.stage, self.health = run, stage, health
        self.told: set[str] = set()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Look at what the trainer logs."""
        if not state.is_world_process_zero:
            return
        self.look(logs or {}, state.global_step)

    def look(self, logs: dict[str, Any], step: int) -> None:
        """Say what is wrong with these numbers, in the log and in metrics.jsonl, or stop."""
        for warning in health_warnings(logs, self.health):
            if warning not in self.told:
                self.told.add(warning)
                print(f"warning: training health: {warning} (step {step})", flush=True)
                self.run.log_metrics(self.stage, {"step": step, "health": warning})
            if self.health.stop:
                raise StageFailed("training health", value=warning, where=f"{self.stage}, step {step}",
                                  do="see docs/cli.md, training health; health.stop: false goes on")  # fmt: skip

    def save(self, folder: Path) -> None:
        """Write what was said into a checkpoint's folder."""
        (folder / TOLD).write_text(json.dumps(sorted(self.told)), encoding="utf-8")

    def load(self, folder: Path) -> None:
        """Take what was said from a checkpoint's folder."""
        self.told = set(json.loads((folder / TOLD).read_text(encoding="utf-8")))


def health_warnings(logs: dict[str, Any], health: Health) -> list[str]:
    """What is wrong with one log of a trainer, in words."""
    warnings = []
    for key in ("loss", "grad_norm"):
        if key in logs and not math.isfinite(float(logs[key])):
            warnings.append(f"{key} is not finite")
    if float(logs.get("grad_norm", 1.0)) == 0.0:
        warnings.append("the gradient is zero")
    if float(logs.get("kl") or 0.0) > health.kl_max:
        warnings.append(f"KL is above health.kl_max {health.kl_max}")
    for prefix, which in (("", "answers"), ("dev_", "answers on dev rows")):
        for word in ("Yes", "No"):
            if float(logs.get(f"{prefix}share_{word.lower()}", 0.0)) > health.one_sided_share:
                warnings.append(f"{which} are one-sided: nearly all {word}")
        if float(logs.get(f"{prefix}unparsable", 0.0)) > health.one_sided_share:
            warnings.append(f"{which} can hardly ever be parsed")
    return warnings
