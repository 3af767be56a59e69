"""One training or generation step as the tracer takes it: everything that decides on its peak memory."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pipeline.training.peaks import versions

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "auto": 2}
"""Of one number; `auto` is 16-bit on every GPU."""


@dataclass(frozen=True)
class Step:
    """One process's share of a step."""

    config: dict[str, Any]
    """Keys of the model's config.json."""
    rows: int
    """Sequences at once: the micro-batch, or those generated together."""
    tokens: int
    """Tokens of each (the prompt's, when generating)."""
    new_tokens: int = 0
    """Tokens to generate; 0 is training."""
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    quantization: Literal["none", "nf4"] = "none"
    attention: str = "sdpa"
    rank: int = 0
    """LoRA's rank; 0 trains all weights."""
    targets: tuple[str, ...] | str = "all-linear"
    dropout: float = 0.0
    adapter_precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    checkpointing: bool = False
    accumulates: bool = True
    """Whether gradients of an earlier micro-batch are there already."""
    optimizer: str = "adamw_torch_fused"
    autocast: bool = True
    loss: str = "fused"
    """`fused` (TRL's head without logits), `full` (all logits), or parts of the sequence one after the other: eager11,
    compiled08 (two digits, the number of parts)."""
    passes: int = 1
    """Passes through the model whose graphs all live until the backward pass."""
    outputs: int = 0
    """Tokens at the end of each row that logits are made of, whatever `loss` says; 0: all."""
    padded: bool = False
    """Whether rows of different length stand together, so that attention takes a mask."""
    upcast: bool = False
    """Weights that are not quantized in 32 bit, as PEFT's prepare_model_for_kbit_training makes them."""
    keep_inputs: bool = False
    """Inputs of 4-bit layers kept for the backward pass, as bitsandbytes before July 2024 did."""

    @property
    def key(self) -> str:
        """16 hex digits over the step, the versions of what allocates and the tracer: the name of its trace."""
        text = json.dumps([asdict(self), versions(), _sources()], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def step_of(tree: dict[str, Any]) -> Step:
    """The step that `dataclasses.asdict` gave, after a way through JSON."""
    targets = tree["targets"]
    return Step(**{**tree, "targets": targets if isinstance(targets, str) else tuple(targets)})


@cache
def _sources() -> str:
    """Hash of the modules that make a trace."""
    digest = hashlib.sha256()
    for name in ("step", "meter", "fake_model", "trace"):
        digest.update(Path(__file__).with_name(f"{name}.py").read_bytes())
    return digest.hexdigest()
