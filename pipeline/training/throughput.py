"""How fast a stage trains: samples, tokens and useful tokens a second, and the share of the GPU's operations used."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from transformers import TrainerCallback

KEYS = ("samples_per_second", "tokens_per_second", "useful_tokens_per_second", "tflops", "mfu", "gpu_memory_gb")
"""What is logged; `mfu` on GPUs of known speed alone, `gpu_memory_gb` on GPUs."""


@dataclass
class Counted:
    """Rows and tokens that went forward in training. Sums of useful tokens stay on their device until they are read."""

    rows: int = 0
    tokens: int = 0
    useful: Any = 0

    def add(self, inputs: dict[str, Any]) -> None:
        """Count a batch: padded rows with their mask, or rows put one after the other with positions from 0."""
        ids, mask, positions = (inputs.get(key) for key in ("input_ids", "attention_mask", "position_ids"))
        if ids is None:
            return
        self.tokens += ids.numel()
        if mask is not None:
            self.rows += ids.shape[0]
            self.useful = self.useful + mask.sum()
        else:
            self.rows += ids.shape[0] if positions is None else int((positions == 0).sum())
            self.useful = self.useful + ids.numel()


def flops_per_token(model: Any) -> int:
    """Operations that training needs for one token: 6 a trained weight of a linear layer, 4 a frozen one.

    Forward takes 2, the gradient of the inputs 2, that of the weights 2, which frozen ones do without (Kaplan et al.
    2020, arXiv 2001.08361, section 2.1; for LoRA the same count). Attention's own products, a hundredth at a thousand
    tokens, and the recomputation of checkpointed layers are left out, so that the share is of what is needed.
    """
    total = 0
    for module in model.modules():
        if hasattr(module, "in_features") and hasattr(module, "weight") and not hasattr(module, "base_layer"):
            total += module.in_features * module.out_features * (6 if module.weight.requires_grad else 4)
    return int(total)


class ThroughputCallback(TrainerCallback):  # type: ignore[misc]
    """Adds to each log of TRL's trainers how fast training was since the last one.

    Counts the batches of this process that a gradient is taken of, times the number of processes. All else, as sampling
    completions, judging them, waiting for data, logging and saving, counts as time and not as operations. `peak` is
    what the GPU can do in 16 bit, in TFLOP/s; 0 where that is not known.
    """

    def __init__(self, trainer: Any, peak: float) -> None:
        self.trainer, self.peak = trainer, peak
        self.since = Counted()
        self.began = 0.0
        model = trainer.accelerator.unwrap_model(trainer.model)
        self.flops = flops_per_token(model)
        model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module: Any, values: Any, named: dict[str, Any]) -> None:
        if module.training and torch.is_grad_enabled():
            self.since.add(named)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin to count."""
        self.since, self.began = Counted(), time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Hand the figures to the trainer when it is about to log."""
        if not control.should_log:
            return
        seconds, processes = time.perf_counter() - self.began, args.world_size
        useful = float(self.since.useful)
        figures = {
            "samples_per_second": self.since.rows * processes / seconds,
            "tokens_per_second": self.since.tokens * processes / seconds,
            "useful_tokens_per_second": useful * processes / seconds,
            "tflops": useful * self.flops / seconds / 1e12,
            **({"mfu": useful * self.flops / seconds / 1e12 / self.peak} if self.peak else {}),
            **_memory(),
        }
        for key, value in figures.items():
            self.trainer._metrics["train"][key].append(value)
        self.since, self.began = Counted(), time.perf_counter()


def _memory() -> dict[str, float]:
    """GB of the GPU that tensors held at most; {} without CUDA."""
    return {"gpu_memory_gb": torch.cuda.max_memory_allocated() / 1e9} if torch.cuda.is_available() else {}
