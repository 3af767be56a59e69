"""The keys of scripts/train.py's configurations (model, data, trainer, reward) in the spelling of recipes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from pipeline.errors import UserError
from pipeline.recipe import KINDS
from pipeline.recipe_questions import GRADED, SOURCES
from pipeline.settings import Tree, collect, merge, nearest
from pipeline.trainer_options import RESERVED, trainer_options

PRECISIONS = {"bfloat16": "bf16", "bf16": "bf16", "float16": "fp16", "fp16": "fp16", "float32": "fp32", "fp32": "fp32"}
TYPES = ("sft", "dpo", "ppo", "grpo")
KEYS: dict[str, tuple[str, ...]] = {
    "model": ("name", "dtype", "use_lora", "lora", "gradient_checkpointing", "resume_from"),
    "data": ("name", "split", "template", "max_samples"),
    "trainer": (
        "type", "output_dir", "run_name", "num_epochs", "batch_size", "gradient_accumulation_steps", "learning_rate",
        "logging_steps", "save_steps", "eval_steps", "resume_from_checkpoint", "group_size", "seed", "beta",
    ),
    "reward": ("type", "positive", "negative", "partial_credit", "parts"),
}  # fmt: skip
"""The keys that such a configuration has; `trainer` also takes what a stage of its type takes."""
EVERY_STEPS = {"save_steps": "checkpoint", "eval_steps": "guard"}
RENAMED = {"num_epochs": "num_train_epochs", "group_size": "num_generations"}
BATCH = ("batch_size", "gradient_accumulation_steps")
RESOURCES = {"gpus": 1, "cpus": 8, "memory": "32G", "time": "24:00:00"}
"""What the stages of a whole configuration, which says nothing of machines, ask for."""
DEFAULT_BATCH = (4, 4)
"""Rows at once and steps accumulated where a whole configuration names none."""


@dataclass
class Translated:
    """A recipe's mapping, or changes to one, with what each old key became."""

    tree: Tree = field(default_factory=dict)
    told: list[str] = field(default_factory=list)
    run_name: str | None = None

    def put(self, old: str, value: Any, *dotted: str) -> None:
        """Set a value under its new keys, and say so."""
        for each in dotted:
            change: Any = value
            for key in reversed(each.split(".")):
                change = {key: change}
            self.tree = merge(self.tree, change)
        self.say(old, " ".join(f"{each}={shown(value)}" for each in dotted))

    def say(self, old: str, new: str) -> None:
        """Note what an old key is now."""
        self.told.append(f"{old} -> {new}")


def shown(value: Any) -> str:
    """A value as an override spells it."""
    return value if isinstance(value, str) else json.dumps(value)


def is_framework_config(tree: Tree) -> bool:
    """Whether a file has the sections of scripts/train.py rather than the stages of a recipe."""
    model = tree.get("model")
    return "stages" not in tree and ("trainer" in tree or (isinstance(model, dict) and "name" in model))


def whole_recipe(tree: Tree, where: str) -> Translated:
    """The recipe that a whole configuration describes: preprocess, its trainer, and evaluate where rows can be graded.

    Raises UserErrors that name every unknown key.
    """
    check_keys(tree, where)
    stage = str((tree.get("trainer") or {}).get("type", "sft"))
    task = str((tree.get("data") or {}).get("name", ""))
    if task not in SOURCES or stage not in TYPES:
        key, value, known = ("data.name", task, SOURCES) if stage in TYPES else ("trainer.type", stage, TYPES)
        raise UserError(f"{key} names none that is known", value=value, where=where, do=nearest(value, list(known)))
    made = Translated()
    stages = ["preprocess", stage, *(["evaluate"] if task in GRADED else [])]
    made.put("trainer.type", stages, "stages")
    micro, steps = (
        (tree.get("trainer") or {}).get(key, usual) for key, usual in zip(BATCH, DEFAULT_BATCH, strict=True)
    )
    made.tree |= {stage: {"micro_batch_size": micro, "global_batch_size": micro * steps}}
    made.tree["resources"] = {each: RESOURCES if each != "preprocess" else {} for each in stages}
    return _translate(tree, [stage], made, where)


def changes(tree: Tree, recipe: Tree, where: str) -> Translated:
    """Changes to a recipe's mapping, from old keys; keys of recipes stay what they are.

    `trainer` and `reward` go to every training stage that the recipe has, or to those of `trainer.type`.
    """
    old = {section: tree[section] for section in KEYS if isinstance(tree.get(section), dict)}
    ours = {section: {k: v for k, v in old[section].items() if _is_new(section, k)} for section in old}
    theirs = {section: {k: v for k, v in old[section].items() if not _is_new(section, k)} for section in old}
    check_keys(theirs, where)
    kinds = {name: kind for name, kind in _stages(recipe) if kind in TYPES}
    wanted = (theirs.get("trainer") or {}).get("type")
    stages = [name for name, kind in kinds.items() if wanted in (None, kind)]
    if wanted is not None and not stages:
        raise UserError("the recipe has no such stage", value=wanted, where=f"trainer.type in {where}",
                        do="stages: " + ", ".join(kinds))  # fmt: skip
    rest = {key: value for key, value in tree.items() if key not in old}
    made = Translated({**rest, **{section: values for section, values in ours.items() if values}})
    return _translate(theirs, stages, made, where, recipe)


def _stages(recipe: Tree) -> list[tuple[str, str]]:
    """(name, kind) of the stages that a recipe's mapping lists."""
    listed = recipe.get("stages")
    pairs = [(each, each) if isinstance(each, str) else (each.get("name"), each.get("kind", each.get("name")))
             for each in (listed if isinstance(listed, list) else []) if isinstance(each, str | dict)]  # fmt: skip
    return [(str(name), str(kind)) for name, kind in pairs]


def _is_new(section: str, key: str) -> bool:
    """Whether a key of a section that both spellings have is a recipe's: `model.base`, `data.template`."""
    shared = {"model": ("base", "revision", "precision", "quantization", "attention", "tf32", "scratch", "lora"),
              "data": ("template", "max_samples")}  # fmt: skip
    return key in shared.get(section, ()) or (section == "data" and key not in KEYS["data"])


def check_keys(tree: Tree, where: str) -> None:
    """Raise UserErrors that name every key that such a configuration does not have."""
    trainer = tree.get("trainer")
    kind = trainer.get("type", "sft") if isinstance(trainer, dict) else "sft"
    more = [*trainer_options(kind), *KINDS[kind].model_fields] if kind in TYPES else []

    def check(section: str, key: str) -> None:
        known = [*KEYS[section], *(more if section == "trainer" else [])]
        if key not in known:
            raise UserError("unknown key", value=f"{section}.{key}", where=where, do=nearest(key, known))

    def check_section(section: str, values: Any) -> None:
        if section not in KEYS:
            raise UserError("unknown section", value=section, where=where, do=nearest(section, list(KEYS)))
        if not isinstance(values, dict):
            raise UserError("a section must be a mapping", value=values, where=f"{section} in {where}", do="key: value")
        collect([partial(check, section, key) for key in values])

    collect([partial(check_section, section, values) for section, values in tree.items()])


def _translate(
    tree: Tree, stages: Sequence[str], made: Translated, where: str, recipe: Tree | None = None
) -> Translated:
    for key, value in (tree.get("model") or {}).items():
        _model(made, key, value, stages, where)
    for key, value in (tree.get("data") or {}).items():
        _data(made, key, value, stages)
    trainer = tree.get("trainer") or {}
    if any(key in trainer for key in BATCH):
        _batch(made, trainer, stages, recipe)
    for key, value in trainer.items():
        if key not in (*BATCH, "type"):
            _trainer(made, key, value, stages, recipe, where)
    if tree.get("reward"):
        learned = [stage for stage in stages if _kind(stage, recipe) in ("grpo", "ppo")]
        for key, value in tree["reward"].items():
            made.put(f"reward.{key}", value, *(f"{stage}.reward.{key}" for stage in learned))
    if recipe is None and (tree.get("model") or {}).get("use_lora", True) and "lora" not in made.tree.get("model", {}):
        made.put("model.use_lora", {}, "model.lora")  # LoRA is what such a configuration means unless it says no
    return made


def _kind(stage: str, recipe: Tree | None) -> str:
    return dict(_stages(recipe)).get(stage, stage) if recipe else stage


def _model(made: Translated, key: str, value: Any, stages: Sequence[str], where: str) -> None:
    old = f"model.{key}"
    if key == "resume_from" and value is None:
        made.say(old, "nothing: training starts from model.base")
    elif key in ("name", "resume_from"):
        made.put(old, value, "model.base")
    elif key == "dtype":
        if value not in PRECISIONS:
            raise UserError("unknown dtype", value=value, where=where, do=nearest(str(value), list(PRECISIONS)))
        made.put(old, PRECISIONS[value], "model.precision")
    elif key == "use_lora" and not value:
        made.put(old, None, "model.lora")
    elif key == "use_lora":
        made.say(old, "model.lora, with its keys")
        made.tree = merge({"model": {"lora": {}}}, made.tree)
    elif key == "lora":
        made.put(old, value, "model.lora")
    else:
        made.put(old, value, *(f"{stage}.{key}" for stage in stages))


def _data(made: Translated, key: str, value: Any, stages: Sequence[str]) -> None:
    old = f"data.{key}"
    if key == "name":
        made.put(old, value, "task")
    elif key == "split":
        if value == "train":
            made.say(old, "nothing: training rows are those of the split train")
        else:
            made.put(old, value, *(f"data.parts.{stage}.split" for stage in stages))
    else:
        made.put(old, value, old)


def _batch(made: Translated, trainer: Tree, stages: Sequence[str], recipe: Tree | None) -> None:
    """Rows at once and accumulation, whose product is the global batch; one not named stays as the recipe has it."""
    for stage in stages:
        section = (recipe or {}).get(stage) or made.tree.get(stage) or {}
        whole = section.get("global_batch_size", DEFAULT_BATCH[0] * DEFAULT_BATCH[1])
        micro = section.get("micro_batch_size", DEFAULT_BATCH[0])
        rows, steps = (
            trainer.get(key, usual) for key, usual in zip(BATCH, (micro, max(1, whole // micro)), strict=True)
        )
        named = ", ".join(f"trainer.{key}" for key in BATCH if key in trainer)
        told = f"{stage}.micro_batch_size={rows} {stage}.global_batch_size={rows * steps}"
        made.tree = merge(made.tree, {stage: {"micro_batch_size": rows, "global_batch_size": rows * steps}})
        made.say(named, told)


def _trainer(
    made: Translated, key: str, value: Any, stages: Sequence[str], recipe: Tree | None, where: str
) -> None:  # fmt: skip
    old = f"trainer.{key}"
    if key == "resume_from_checkpoint":
        if value not in (None, "latest"):
            raise UserError("only the latest checkpoint of a run is gone on from", value=value, where=where,
                            do="write latest, or model.resume_from to start from this one's weights")  # fmt: skip
        made.say(old, "nothing: a stage goes on from its newest complete checkpoint by itself")
    elif key == "run_name":
        made.run_name = str(value)
        made.say(old, f"--run-name {value}")
    elif key == "output_dir":
        made.say(old, "nothing: models/<run>_<stage>_model, logs/<run> and evaluation_results/<run>")
    elif key == "seed":
        made.put(old, value, "seed")
    elif key in EVERY_STEPS:
        fitting = [stage for stage in stages if EVERY_STEPS[key] == "checkpoint" or _kind(stage, recipe) != "sft"]
        if fitting:
            made.put(old, value, *(f"{stage}.{EVERY_STEPS[key]}.every_steps" for stage in fitting))
        else:
            made.say(old, "nothing: the evaluate stage measures what SFT made")
    elif key == "beta":
        names = {stage: "kl_coefficient" if _kind(stage, recipe) == "ppo" else "beta" for stage in stages}
        made.put(old, value, *(f"{stage}.{name}" for stage, name in names.items()))
    elif key in RESERVED:
        raise UserError("this option has another place", value=old, where=where, do=f"use {RESERVED[key]}")
    else:
        made.put(old, value, *(f"{stage}.{RENAMED.get(key, key)}" for stage in stages))
