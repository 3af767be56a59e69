"""What a recipe leaves to the GPU: precision, tf32, the attention kernel. Imports no torch where the GPU is told."""

from __future__ import annotations

from importlib.util import find_spec

from pipeline.errors import UserError
from pipeline.recipe import Model


def settled(model: Model, *, bf16: bool | None, gpu: str) -> Model:
    """The model section with `auto` settled for a GPU that has bf16 or not; None for a CPU.

    Raises UserError for a precision or an attention kernel that this GPU does not have; `gpu` is its name.
    """
    precision = model.precision
    if precision == "auto":
        precision = "fp32" if bf16 is None else "bf16" if bf16 else "fp16"
    if precision == "bf16" and bf16 is False:
        raise UserError(
            f"{gpu} has no bf16: it would be emulated, many times slower", value="bf16", where="model.precision",
            do="use fp16, or auto, which follows the GPU",
        )  # fmt: skip
    tf32 = bool(bf16) if model.tf32 == "auto" else model.tf32 and bf16 is not False
    change = {"precision": precision, "tf32": tf32, "attention": _attention(model, precision, bf16, gpu)}
    return model.model_copy(update=change)


def _attention(model: Model, precision: str, bf16: bool | None, gpu: str) -> str:
    usable = bool(bf16) and precision != "fp32"
    installed = find_spec("flash_attn") is not None
    if model.attention == "auto":
        return "flash_attention_2" if usable and installed else "sdpa"
    if model.attention == "flash_attention_2" and not (usable and installed):
        why = "flash-attn is not installed" if not installed else f"{gpu} with {precision} cannot run it"
        raise UserError(f"FlashAttention 2: {why}", value=model.attention, where="model.attention",
                        do="use auto or sdpa; it needs flash-attn, an Ampere GPU or later, and 16 bit")  # fmt: skip
    return model.attention


def settled_here(model: Model) -> Model:
    """The model section as this process's GPU, or the CPU, takes it. Raises UserError as `settled` does."""
    import torch

    if not torch.cuda.is_available():
        return settled(model, bf16=None, gpu="the CPU")
    device = torch.cuda.current_device()
    has_bf16 = torch.cuda.get_device_capability(device)[0] >= 8
    return settled(model, bf16=has_bf16, gpu=torch.cuda.get_device_name(device))
