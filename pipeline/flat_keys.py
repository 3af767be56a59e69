"""Flat keys of training scripts (model_name_or_path, use_4bit, lora_r ...) as keys of a recipe."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.recipe import KINDS
from pipeline.settings import Tree, collect, merge, nearest, parse_yaml
from pipeline.trainer_options import RENAMED, RESERVED, trainer_options

PLACES = {
    "model_name_or_path": "model.base",
    "model_revision": "model.revision",
    "attn_implementation": "model.attention",
    "chat_template": "model.chat_template",
    "tf32": "model.tf32",
    "lora_r": "model.lora.r",
    "lora_alpha": "model.lora.alpha",
    "lora_dropout": "model.lora.dropout",
    "dataset_name": "data.source",
    "max_train_samples": "data.rows.{stage}",
    "max_eval_samples": "data.rows.dev",
    "seed": "seed",
    "wandb_project": "tracking.project",
    "run_name": "tracking.run_name",
    "wandb_run_name": "tracking.run_name",
    "save_steps": "{stage}.checkpoint.every_steps",
    "save_total_limit": "{stage}.checkpoint.keep",
    "warmup_ratio": "{stage}.warmup_steps",
    "num_epochs": "{stage}.num_train_epochs",
}
"""Keys that only have another name."""
PLACES_SFT = {"max_seq_length": "{stage}.max_length", "max_length": "{stage}.max_length"}
PLACES_GRPO = {
    "num_generations": "{stage}.num_generations",
    "generation": "{stage}.generation",
    "max_new_tokens": "{stage}.max_completion_length",
    "eval_steps": "{stage}.guard.every_steps",
    "kl_coef": "{stage}.beta",
    **{
        key: f"{{stage}}.rewards.{key}"
        for key in ("correct_reward", "incorrect_reward", "reasoning_length_bonus", "max_bonus_steps")
    },
}
GRPO_KEYS = {"num_generations", "max_completion_length", "max_prompt_length", "beta", *PLACES_GRPO} - {"eval_steps"}
"""Keys that only a GRPO file has."""

_BY_GUARD = "a stage measures itself by its guard, and evaluate compares the models"
DROPPED = {
    "trust_remote_code": "models are loaded by the code of transformers alone",
    "resume_from_checkpoint": "a stage resumes from its newest complete checkpoint by itself",
    "max_prompt_length": "prompts are never cut",
    "save_strategy": "checkpoints follow checkpoint.every_steps",
    "eval_strategy": _BY_GUARD,
    "evaluation_strategy": _BY_GUARD,
    "eval_steps": _BY_GUARD,
    "per_device_eval_batch_size": _BY_GUARD,
    "load_best_model_at_end": _BY_GUARD,
    "metric_for_best_model": _BY_GUARD,
    "greater_is_better": _BY_GUARD,
    "logging_dir": "logs go to the run's own folder",
    "cache_dir": "caches are named in the cluster file (cache, caches) or by HF_HOME",
    "overwrite_output_dir": "a finished stage is made anew with --replace",
    "local_rank": "the launcher says it in the environment",
    "response_template": "the loss covers the completion by itself",
    "dataset_text_field": "rows are tokenized by the preprocess stage",
    "max_seq_length": "prompts are never cut, and completions have max_completion_length",
}
"""Keys without a place here, and why nothing is lost."""
DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "half": "fp16"}
PROCESSED = "data/processed/"
TAUGHT = "teacher.jsonl"
"""Beside a prepared data set: its rows as a prediction file, which recipes read."""


@dataclass
class Translated:
    """What flat keys mean: changes of a recipe by dotted key, why keys were left out, where the model is wanted."""

    changes: dict[str, Any] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    output: str | None = None

    def tree(self) -> Tree:
        """The changes as a nested mapping."""
        made: Tree = {}
        for dotted, value in self.changes.items():
            *sections, key = dotted.split(".")
            nested: Tree = {key: value}
            for section in reversed(sections):
                nested = {section: nested}
            made = merge(made, nested)
        return made

    def overrides(self) -> list[str]:
        """The changes as they are given on the command line."""
        return [f"{dotted}={_as_text(value)}" for dotted, value in self.changes.items()]


def _as_text(value: Any) -> str:
    plain = isinstance(value, str) and value.isprintable() and parse_yaml(value, value) == value
    return str(value) if plain else json.dumps(value)


def is_flat(tree: Tree) -> bool:
    """Whether the mapping of a file has flat keys in place of a recipe's sections."""
    return "stages" not in tree and "model" not in tree and bool(tree.keys() & {*PLACES, "output_dir", "use_4bit"})


def kind_of(flat: Tree) -> str:
    """The kind of stage that a flat file is for."""
    return "grpo" if flat.keys() & GRPO_KEYS else "sft"


def flat_recipe(flat: Tree, where: str) -> Tree:
    """The mapping of a recipe with one training stage from a flat file, batches as for one process."""
    kind = kind_of(flat)
    base: Tree = {
        "stages": ["preprocess", kind],
        "model": {"lora": {}} if any(key.startswith("lora_") for key in flat) else {},
        "data": {"source": "causal-nlp/corr2cause", "max_variables": 6},
        kind: {"global_batch_size": 8},
        "resources": {kind: {"time": "12:00:00", "gpus": 1, "cpus": 4, "memory": "32G"}},
    }
    return merge(base, translate(flat, kind, kind, {}, 1, where).tree())


def translate(flat: Tree, kind: str, stage: str, section: Tree, processes: int, where: str) -> Translated:
    """What flat keys mean for the stage `stage` of a kind whose section in the recipe is `section`.

    Batch sizes count for `processes` processes. Raises UserErrors for every key that is not known or has no meaning.
    """
    made = Translated()
    checks: list[Callable[[], object]] = [
        partial(_translate_key, made, key, value, kind, stage, where) for key, value in flat.items()
    ]
    checks.append(partial(_precision, made, flat, where))
    collect(checks)
    if flat.get("use_lora") is False:
        made.changes = {key: value for key, value in made.changes.items() if not key.startswith("model.lora")}
        made.changes["model.lora"] = None
    _batch(made, flat, stage, section, processes)
    return made


def _translate_key(made: Translated, key: str, value: Any, kind: str, stage: str, where: str) -> None:
    places = {**PLACES, **(PLACES_GRPO if kind == "grpo" else PLACES_SFT)}
    if key in _SPECIAL:
        _SPECIAL[key](made, key, value, stage, where)
    elif key in places:
        made.changes[places[key].format(stage=stage)] = value
    elif key in DROPPED:
        made.dropped[key] = DROPPED[key]
    elif key in KINDS[kind].model_fields or (key in trainer_options(kind) and key not in (*RESERVED, *RENAMED)):
        made.changes[f"{stage}.{key}"] = value
    else:
        known = {*places, *_SPECIAL, *DROPPED, *trainer_options(kind)} - {"bf16_full_eval", "fp16_full_eval"}
        raise UserError("unknown key", value=key, where=where, do=nearest(key, known))


def _batch(made: Translated, flat: Tree, stage: str, section: Tree, processes: int) -> None:
    """Rows of one process and accumulation, as the global batch; a micro-batch alone leaves a recipe's as it is."""
    micro, steps = flat.get("per_device_train_batch_size"), flat.get("gradient_accumulation_steps")
    if micro is None and steps is None:
        return
    each = int(micro or section.get("micro_batch_size", 8))
    made.changes[f"{stage}.micro_batch_size"] = each
    if steps is not None or "global_batch_size" not in section:
        made.changes[f"{stage}.global_batch_size"] = each * int(steps or 1) * processes


def _precision(made: Translated, flat: Tree, where: str) -> None:
    """One precision for weights, 4-bit products and autocast; two that differ are refused."""
    told = {key: DTYPES.get(str(flat[key]).removeprefix("torch."), "") for key in _TYPED if flat.get(key) is not None}
    if "bf16" in flat or "fp16" in flat:
        asked = [name for name in ("bf16", "fp16") if flat.get(name)]
        if len(asked) == 2:
            raise UserError("bf16 and fp16 are both asked for", value=True, where=where, do="leave one of them out")
        told["bf16/fp16"] = asked[0] if asked else "fp32"
    told = {key: name for key, name in told.items() if flat.get(key) != "auto"}
    wrong = next((key for key, name in told.items() if not name), None)
    if wrong:
        raise UserError(f"unknown {wrong}", value=flat[wrong], where=where, do=nearest(str(flat[wrong]), DTYPES))
    if len(set(told.values())) > 1:
        raise UserError("a stage has one precision", value=told, where=where, do="give these keys the same one")
    if told:
        made.changes["model.precision"] = next(iter(told.values()))


def _quantize(made: Translated, key: str, value: Any, stage: str, where: str) -> None:
    made.changes["model.quantization"] = "nf4" if value else "none"


def _eight_bit(made: Translated, key: str, value: Any, stage: str, where: str) -> None:
    if value:
        raise UserError("8-bit weights are not trained here", value=key, where=where,
                        do="use_4bit: true, NF4 with double quantization, takes half of that")  # fmt: skip


def _only(wanted: Any, told: str) -> Callable[[Translated, str, Any, str, str], None]:
    def check(made: Translated, key: str, value: Any, stage: str, where: str) -> None:
        if value != wanted:
            raise UserError(f"{key} is always {wanted}", value=value, where=where, do=told)

    return check


def _lora(made: Translated, key: str, value: Any, stage: str, where: str) -> None:
    if value:
        made.changes.setdefault("model.lora", {})


def _targets(made: Translated, key: str, value: Any, stage: str, where: str) -> None:
    names = [name.strip() for name in value.split(",")] if isinstance(value, str) else value
    made.changes["model.lora.target_modules"] = "all-linear" if names == ["all-linear"] else names


def _attention(made: Translated, key: str, value: Any, stage: str, where: str) -> None:
    made.changes["model.attention"] = "auto" if value else "sdpa"


def _report(made: Translated, key: str, value: Any, stage: str, where: str) -> None:
    words = [value] if isinstance(value, str) else list(value or [])
    every = ["wandb", "tensorboard"]
    made.changes["tracking.report_to"] = every if words == ["all"] else [word for word in words if word != "none"]


def _output(made: Translated, key: str, value: Any, stage: str, where: str) -> None:
    made.output = str(value)


def _deepspeed(made: Translated, key: str, value: Any, stage: str, where: str) -> None:
    path = Path(str(value))
    if not path.is_file():
        raise UserError("no such DeepSpeed configuration", value=str(value), where=where,
                        do="configs/deepspeed holds zero2.json, zero3.json and both with offloading")  # fmt: skip
    made.changes[f"resources.{stage}.launcher"] = "deepspeed"
    made.changes[f"resources.{stage}.deepspeed"] = str(path.resolve())


def _dataset(made: Translated, key: str, value: Any, stage: str, where: str) -> None:
    """A prepared data set is read by its prediction file; the processed rows of other scripts are made anew."""
    path = Path(str(value))
    if (path / TAUGHT).is_file():
        made.changes["data.completions"] = "teacher"
        made.changes["data.teacher"] = str((path / TAUGHT).resolve())
    elif f"{path.as_posix()}/".removeprefix("./") in (f"{PROCESSED}sft/", f"{PROCESSED}grpo/"):
        made.dropped[key] = "the preprocess stage makes the rows, from data.source"
    else:
        raise UserError("no prepared data set", value=str(value), where=f"{key} in {where}",
                        do="scripts/prepare_sft_data.py makes one; a hub id is given as dataset_name")  # fmt: skip


def _by_length(made: Translated, key: str, value: Any, stage: str, where: str) -> None:
    if value:
        made.changes[f"{stage}.train_sampling_strategy"] = "group_by_length"


def _elsewhere(made: Translated, key: str, value: Any, stage: str, where: str) -> None:
    """Keys that are read together with others."""


_TYPED = ("torch_dtype", "bnb_4bit_compute_dtype")
_NF4 = _only("nf4", "leave it out: 4-bit weights are NF4")
_DOUBLE = _only(True, "leave it out: double quantization saves memory and is always used")
_SPECIAL: dict[str, Callable[[Translated, str, Any, str, str], None]] = {
    "use_4bit": _quantize,
    "load_in_4bit": _quantize,
    "use_8bit": _eight_bit,
    "load_in_8bit": _eight_bit,
    "bnb_4bit_quant_type": _NF4,
    "use_nested_quant": _DOUBLE,
    "bnb_4bit_use_double_quant": _DOUBLE,
    "use_lora": _lora,
    "use_peft": _lora,
    "lora_target_modules": _targets,
    "use_flash_attention": _attention,
    "use_flash_attention_2": _attention,
    "report_to": _report,
    "output_dir": _output,
    "deepspeed": _deepspeed,
    "dataset_path": _dataset,
    "group_by_length": _by_length,
    **dict.fromkeys(
        ("bf16", "fp16", *_TYPED, "per_device_train_batch_size", "gradient_accumulation_steps"), _elsewhere
    ),
}
"""Keys whose value means something else here."""
