"""The GPU memory that a training stage takes: what the fit planner learns from."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes")
"""Packages whose code allocates."""


@cache
def versions() -> dict[str, str]:
    """Installed versions of PACKAGES; "" for what is absent."""
    return {package: _version(package) for package in PACKAGES}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def machine(arguments: Any) -> dict[str, Any]:
    """What a recorded peak is of: the GPU, the trainer's arguments that it depends on, versions; {} without CUDA."""
    import torch

    if not torch.cuda.is_available():
        return {}
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "gpu": properties.name,
        "gpu_memory": properties.total_memory,
        "processes": arguments.world_size,
        "micro": arguments.per_device_train_batch_size,
        "checkpointing": bool(arguments.gradient_checkpointing),
        "versions": versions(),
    }


def peaks() -> dict[str, int]:
    """Bytes of this process's GPU, at most since it began: held by tensors, and reserved for them; {} without CUDA."""
    import torch

    if not torch.cuda.is_available():
        return {}
    return {"peak_allocated": torch.cuda.max_memory_allocated(), "peak_reserved": torch.cuda.max_memory_reserved()}
