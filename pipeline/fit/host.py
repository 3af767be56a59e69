"""What a stage needs beside the GPU: memory of the node, and disk for checkpoints and models."""

from __future__ import annotations

from pipeline.fit.step import BYTES
from pipeline.fit.workload import Work
from pipeline.recipe import Recipe

PROCESS = 3.0e9
"""Bytes of host memory of one process: Python, torch, the CUDA libraries."""
SHARD = 5.0e9
"""Largest weight file of a published model: quantized loading goes file by file."""
TOKENIZER = 2.0e7
OPTIMIZER_BYTES = {"8bit": 2.03125, "adafactor": 0.1, "sgd": 0.0}
"""Bytes a trained parameter that optimizers keep which are not AdamW in the parameter's own precision."""


def host_memory(recipe: Recipe, work: Work) -> float:
    """Bytes of one node: each process loads the weights into host memory first, quantized ones file by file."""
    resources = recipe.resources[work.name]
    processes = max(1, work.world // resources.nodes)
    weights = work.architecture.parameters * BYTES[recipe.model.precision]
    loading = min(weights, SHARD) if recipe.model.quantization == "nf4" else weights
    return processes * (PROCESS + loading)


def checkpoint_bytes(recipe: Recipe, work: Work) -> float:
    """Bytes of one checkpoint: trained weights and the optimizer's states."""
    trained, each = _trained(recipe, work)
    kind = str(work.options.get("optim", "adamw"))
    states = next((size for word, size in OPTIMIZER_BYTES.items() if word in kind), 2.0 * each)
    return trained * (each + states) + TOKENIZER


def disk_bytes(recipe: Recipe, work: Work) -> tuple[float, float]:
    """(most while it runs, what stays): checkpoints are deleted when the stage is done, the model stays.

    A guard keeps its best weights inside each checkpoint.
    """
    trained, each = _trained(recipe, work)
    own = recipe.own(work.name)
    best = trained * each if getattr(own, "guard", None) is not None else 0.0
    model = trained * each + TOKENIZER
    return model + best + (own.checkpoint.keep + 1) * (checkpoint_bytes(recipe, work) + best), model


def _trained(recipe: Recipe, work: Work) -> tuple[int, int]:
    """(trained parameters, bytes of each)."""
    lora = recipe.model.lora
    if lora is None:
        return work.architecture.parameters, BYTES[recipe.model.precision]
    return work.architecture.lora_parameters(lora.r, lora.target_modules), BYTES["fp32"]
