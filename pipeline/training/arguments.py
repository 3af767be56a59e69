"""What the trainers of all stages are told alike: batch, precision, devices, folders, tracking; and how to save."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.recipe import Recipe
from pipeline.records import remove
from pipeline.run import HOME, RunDir
from pipeline.training.batch import derive
from pipeline.training.ranks import world_size

DEFAULTS: dict[str, Any] = {"logging_steps": 10, "gradient_checkpointing": False}
"""Options that a recipe's section may set otherwise."""


def common_arguments(recipe: Recipe, run: RunDir, stage: str, global_batch: int, micro_batch: int) -> dict[str, Any]:
    """Keyword arguments for SFTConfig and GRPOConfig that the recipe's sections must not set themselves."""
    import torch

    batch = derive(global_batch, world_size(), micro_batch)
    on_cpu = not torch.cuda.is_available()
    resources = recipe.resources[stage]
    own_defaults = {key: value for key, value in DEFAULTS.items() if key not in recipe.sections[stage]}
    return {
        **own_defaults,
        "save_strategy": "no",  # CheckpointCallback says when
        "output_dir": str(run.checkpoints(stage)),
        "per_device_train_batch_size": batch.micro,
        "gradient_accumulation_steps": batch.accumulation,
        "seed": recipe.seed,
        "data_seed": recipe.seed,
        "use_cpu": on_cpu,
        "bf16": recipe.model.precision == "bf16",
        "fp16": recipe.model.precision == "fp16" and not on_cpu,
        "tf32": True if recipe.model.tf32 and not on_cpu else None,
        "deepspeed": str(HOME / "configs" / "deepspeed" / resources.deepspeed) if resources.deepspeed else None,
        "report_to": recipe.tracking.report_to or "none",
        "run_name": f"{run.name}-{stage}",
        "disable_tqdm": True,
    }


def cast_adapters(model: Any) -> None:
    """Make trained weights beside a quantized model float32 again (TRL casts them to bf16): exact resume."""
    import torch

    for name, parameter in model.named_parameters():
        if parameter.requires_grad and ("lora_" in name or "value_head" in name):
            parameter.data = parameter.data.to(torch.float32)


def save_model(trainer: Any, tokenizer: Any, folder: Path) -> None:
    """Save the model (adapter only, where there is one) and the tokenizer; the first process writes."""
    if trainer.accelerator.is_main_process:
        remove([folder])
    trainer.accelerator.wait_for_everyone()
    trainer.save_model(str(folder))
    if trainer.accelerator.is_main_process:
        tokenizer.save_pretrained(folder)
    trainer.accelerator.wait_for_everyone()
