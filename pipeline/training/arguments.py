"""What the trainers of all stages are told alike: batch, precision, devices, folders, tracking; and how to save."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.recipe import Recipe, Resources
from pipeline.records import remove
from pipeline.run import HOME, RunDir
from pipeline.training.batch import derive
from pipeline.training.ranks import world_size
from pipeline.training.settle import settled_here
from pipeline.training.tracking import tracked_name

DEFAULTS: dict[str, Any] = {"logging_steps": 10, "gradient_checkpointing": False}
"""Options that a recipe's section may set otherwise."""


def common_arguments(recipe: Recipe, run: RunDir, stage: str, global_batch: int, micro_batch: int) -> dict[str, Any]:
    """Keyword arguments for SFTConfig and GRPOConfig that the recipe's sections must not set themselves."""
    import torch

    batch = derive(global_batch, world_size(), micro_batch)
    on_cpu, model = not torch.cuda.is_available(), settled_here(recipe.model)
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
        "bf16": model.precision == "bf16",
        "fp16": model.precision == "fp16" and not on_cpu,
        "tf32": True if model.tf32 and not on_cpu else None,
        "deepspeed": str(HOME / "configs" / "deepspeed" / resources.deepspeed) if resources.deepspeed else None,
        **fsdp_arguments(resources),
        "report_to": recipe.tracking.report_to or "none",
        "run_name": tracked_name(recipe, run, stage),
        "disable_tqdm": True,
    }


def fsdp_arguments(resources: Resources) -> dict[str, Any]:
    """The arguments that share a model out by FSDP; {} for a stage that does not."""
    if resources.fsdp is None:
        return {}
    config = {
        "reshard_after_forward": resources.fsdp == "full_shard",
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "state_dict_type": "FULL_STATE_DICT",
        "cpu_ram_efficient_loading": True,
    }
    return {"fsdp": True, "fsdp_config": config}


def cast_adapters(model: Any) -> None:
    """Make trained weights beside a quantized model float32 again (TRL casts them to bf16): exact resume."""
    import torch

    for name, parameter in model.named_parameters():
        if parameter.requires_grad and ("lora_" in name or "value_head" in name):
            parameter.data = parameter.data.to(torch.float32)


def keep_adapters(trainer: Any) -> None:
    """Let trained weights be after a generation what they were before: continuous batching in TRL 1.16 makes the whole
    policy 16-bit for it, and leaves it so."""
    generate = trainer._generate_single_turn

    def keeping(*arguments: Any, **options: Any) -> Any:
        kept = [(parameter, parameter.data) for parameter in trainer.model.parameters() if parameter.requires_grad]
        made = generate(*arguments, **options)
        for parameter, data in kept:
            parameter.data = data
        return made

    trainer._generate_single_turn = keeping


def save_model(trainer: Any, tokenizer: Any, folder: Path) -> None:
    """Save the model (adapter only, where there is one) and the tokenizer; the first process writes.

    The copy of the adapter that TRL keeps as reference, under the name `ref`, is no part of the result.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    if "ref" in getattr(model, "peft_config", {}):
        model.delete_adapter("ref")
    if trainer.accelerator.is_main_process:
        remove([folder])
    trainer.accelerator.wait_for_everyone()
    trainer.save_model(str(folder))
    if trainer.accelerator.is_main_process:
        tokenizer.save_pretrained(folder)
    trainer.accelerator.wait_for_everyone()
