"""Which options the installed TRL trainers know, read from their sources so that torch is never imported."""

from __future__ import annotations

import ast
import functools
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.settings import nearest

CONFIG_SOURCES = {
    "sft": ("trl", "trl/trainer/sft_config.py", "SFTConfig"),
    "grpo": ("trl", "trl/trainer/grpo_config.py", "GRPOConfig"),
    "ppo": ("trl", "trl/trainer/grpo_config.py", "GRPOConfig"),
    "dpo": ("trl", "trl/trainer/dpo_config.py", "DPOConfig"),
    "contrastive": ("transformers", "transformers/training_args.py", "TrainingArguments"),
}
_BASES = {
    "_BaseConfig": ("trl", "trl/trainer/base_config.py", "_BaseConfig"),
    "TrainingArguments": ("transformers", "transformers/training_args.py", "TrainingArguments"),
}

SAVING = "checkpoint.every_steps in the same section"
BEST = "guard in grpo, ppo or dpo, or contrastive.early_stopping: they keep the best weights"
RESERVED = {
    "per_device_train_batch_size": "micro_batch_size in the same section (global_batch_size stays what it is)",
    "gradient_accumulation_steps": "global_batch_size in the same section; accumulation follows from the GPUs at hand",
    "per_device_eval_batch_size": "micro_batch_size in the same section",
    "generation_batch_size": "global_batch_size in the same section",
    "output_dir": "--run-name NAME; every stage writes into its run's own folders",
    "bf16": "model.precision",
    "fp16": "model.precision",
    "use_cpu": "nothing: a stage without GPUs runs on the CPU",
    "deepspeed": "resources.<stage>.launcher: deepspeed",
    "report_to": "tracking.report_to",
    "run_name": "--run-name NAME",
    "seed": "seed at the top of the recipe",
    "data_seed": "seed at the top of the recipe",
    "save_strategy": SAVING,
    "save_steps": SAVING,
    "save_total_limit": "checkpoint.keep in the same section",
    "save_only_model": "nothing: the stage's output is the model alone, a checkpoint is all that it takes to go on",
    "save_on_each_node": "nothing: checkpoints stand once, on the file system that the nodes share",
    "enable_jit_checkpoint": "nothing: every stage saves when it is told to stop",
    "load_best_model_at_end": BEST,
    "metric_for_best_model": BEST,
    "greater_is_better": BEST,
    "ignore_data_skip": "nothing: a resumed stage goes on with the row after the last one",
    "restore_callback_states_from_checkpoint": "nothing: a resumed stage has the state of its guard",
    "pad_token": "nothing: the tokenizer's own is taken",
    **dict.fromkeys(
        ("use_vllm", "vllm_mode", "use_transformers_paged", "use_transformers_continuous_batching"),
        "generation in the same section: transformers, continuous, vllm-colocate or vllm-server",
    ),
    "vllm_server_base_url": "nothing: generation: vllm-server starts a server and finds it",
    "fsdp": "resources.<stage>.fsdp",
    "fsdp_config": "resources.<stage>.fsdp",
    "reward_weights": "the weights in grpo.rewards (or in the section of the same stage)",
    "resume_from_checkpoint": "nothing: a stage resumes from its newest complete checkpoint by itself",
}
"""Options that the recipe sets elsewhere, with the right place."""

GROUP = "nothing: it shapes GRPO's group advantages, PPO has those of its value model"
RESERVED_OF = {
    "ppo": {
        "beta": "kl_coefficient in the same section: the penalty is in PPO's rewards",
        "scale_rewards": GROUP,
        "multi_objective_aggregation": GROUP,
        "off_policy_mask_threshold": GROUP,
        "use_bias_correction_kl": GROUP,
        "mask_truncated_completions": "nothing: the end of a completion, cut off or not, is where its reward is paid",
    },
    "dpo": {
        "truncation_mode": "nothing: pairs above max_length are left out, none is cut",
        "padding_free": "nothing: this version of TRL does without",
    },
}
"""The same, of one kind of stage."""

RENAMED = {
    "max_seq_length": "max_length",
    "max_prompt_length": "nothing: prompts are never cut",
    "warmup_ratio": "warmup_steps (a number below 1 is a share of all steps)",
    "evaluation_strategy": "eval_strategy",
    "logging_dir": "nothing: logs go to the run's own folder",
    "group_by_length": "train_sampling_strategy: group_by_length",
    "num_epochs": "num_train_epochs",
}
"""Old names that the seeds and older scripts use, with the new place."""


CHOICES = {
    ("grpo", "loss_type"): ("bnpo", "cispo", "dapo", "dr_grpo", "grpo", "luspo", "sapo", "vespo"),
    ("ppo", "loss_type"): ("bnpo", "dapo", "dr_grpo", "grpo"),
    ("ppo", "importance_sampling_level"): ("token",),
    ("dpo", "loss_type"): (
        "aot",
        "aot_unpaired",
        "apo_down",
        "apo_zero",
        "bco_pair",
        "discopop",
        "exo_pair",
        "hinge",
        "ipo",
        "nca_pair",
        "robust",
        "sft",
        "sigmoid",
        "sigmoid_norm",
        "sppo_hard",
    ),
    ("dpo", "f_divergence_type"): ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"),
    ("grpo", "importance_sampling_level"): ("token", "sequence"),
    ("grpo", "scale_rewards"): ("group", "batch", "none"),
    ("grpo", "multi_objective_aggregation"): ("sum_then_normalize", "normalize_then_sum"),
}
"""Words that the trainers take only in training, too late, when they are not one of these."""


def _source(package: str, path: str) -> Path:
    try:
        return Path(str(distribution(package).locate_file(path)))
    except PackageNotFoundError:
        raise UserError(
            "package not installed", value=package, where="this Python", do="pip install -r requirements.txt"
        ) from None


@functools.cache
def _class_fields(package: str, path: str, name: str) -> dict[str, str]:
    tree = ast.parse(_source(package, path).read_text(encoding="utf-8"))
    found = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    fields: dict[str, str] = {}
    for base in found.bases:
        if isinstance(base, ast.Name) and base.id in _BASES:
            fields |= _class_fields(*_BASES[base.id])
    for node in found.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            fields[node.target.id] = ast.unparse(node.annotation)
    return {name: annotation for name, annotation in fields.items() if not annotation.startswith("ClassVar")}


def trainer_options(kind: str) -> dict[str, str]:
    """Option name -> annotation text of the trainer config of a stage kind ("sft", "dpo" ...)."""
    return _class_fields(*CONFIG_SOURCES[kind])


def option_default(kind: str, option: str) -> Any:
    """The default of an option that the trainer config of a stage kind itself declares, as `field(default=...)`."""
    package, path, name = CONFIG_SOURCES[kind]
    tree = ast.parse(_source(package, path).read_text(encoding="utf-8"))
    found = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    fields = [node for node in found.body if isinstance(node, ast.AnnAssign)]
    value = next(node.value for node in fields if isinstance(node.target, ast.Name) and node.target.id == option)
    assert isinstance(value, ast.Call)
    return next(ast.literal_eval(keyword.value) for keyword in value.keywords if keyword.arg == "default")


def _accepts(annotation: str, value: Any) -> bool:
    """Whether a YAML value may stand for a field with this annotation; unknown annotations accept everything."""
    words = annotation.replace("Optional[", "None | ").replace("Union[", "").replace("[", " ").replace("]", " ")
    names = {word.strip(" ,|'\"") for word in words.replace("|", " ").replace(",", " ").split()}
    if value is None:
        return "None" in names
    if isinstance(value, bool):
        return bool(names & {"bool", "Any"}) or not names & {"int", "float", "str"}
    if isinstance(value, int):
        return bool(names & {"int", "float", "Any"}) or not names & {"bool", "str", "dict", "list"}
    if isinstance(value, float):
        return bool(names & {"float", "Any"}) or not names & {"int", "bool", "str", "dict", "list"}
    if isinstance(value, str):
        return not names or bool(names - {"int", "float", "bool", "None", "list", "dict"})
    if isinstance(value, list):
        return "list" in names or "tuple" in names or "Any" in names
    return "dict" in names or "Any" in names


def check_option(kind: str, stage: str, option: str, value: Any, own: list[str], where: str) -> None:
    """Raise UserError unless the installed trainer knows `option` and takes `value` for it."""
    dotted = f"{stage}.{option}"
    reserved = {**RESERVED_OF.get(kind, {}), **RESERVED}
    if option in RENAMED or option in reserved:
        place = RENAMED.get(option) or reserved[option]
        raise UserError("this option has another place", value=dotted, where=where, do=f"use {place}")
    options = trainer_options(kind)
    if option not in options:
        hint = nearest(option, [*own, *(set(options) - reserved.keys())])
        raise UserError("unknown option", value=dotted, where=f"{where} (trl {_version()})", do=hint)
    if not _accepts(options[option], value):
        wanted = options[option]
        hint = "write the number without quotes" if isinstance(value, str) else f"give a value of type {wanted}"
        raise UserError(f"{dotted} must be {wanted}, not {type(value).__name__}", value=value, where=where, do=hint)
    choices = CHOICES.get((kind, option))
    for word in value if isinstance(value, list) else [value]:
        if choices and word not in choices:
            raise UserError(
                f"unknown {option}", value=word, where=f"{dotted} in {where}", do=nearest(str(word), choices)
            )


def _version() -> str:
    return distribution("trl").version
