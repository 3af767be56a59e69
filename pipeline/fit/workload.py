"""From a recipe's stage to the steps that decide on its memory, and to how much work it is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pipeline import dag
from pipeline.errors import UserError
from pipeline.fit.architecture import Architecture, architecture_of
from pipeline.fit.step import Step
from pipeline.recipe import KINDS, Model, Recipe
from pipeline.recipe_contrastive import PARTS, Triplets
from pipeline.run import RunDir
from pipeline.trainer_options import option_default
from pipeline.training.batch import Batch, derive

LONGEST = {2: 240, 3: 390, 4: 1000, 5: 3040, 6: 9260}
"""Characters of the longest Corr2Cause row by its number of variables; `corr2cause generate` makes them all."""
LONGEST_TEST = {2: 240, 3: 330, 4: 680, 5: 1610, 6: 1850}
"""The same of the released test set."""
QUESTION = 2300
"""Characters of the longest question of the other tasks (math; those of gsm8k, mbpp and humaneval are shorter)."""
GROWTH = 3
"""How many times longer rows get with each variable above six."""
TEMPLATE = 400
"""Characters of the prompt around a row, the chat template's marks included."""
MEAN = {"train": 0.22, "test": 0.55}
"""Mean length over the longest."""
CHARACTERS = 3.4
"""Characters a token of today's vocabularies, on Corr2Cause text."""
ROLLOUTS = ("grpo", "ppo")
"""Kinds of stages whose every step samples completions and learns from them."""
OUTPUTS = 128
"""Tokens of the longest answer of a triplet, supposed."""
RELEASED_TEST = 1162
"""Rows of the released test set."""


@dataclass(frozen=True)
class Lengths:
    """Tokens of the longest row and of a mean one, and where they come from."""

    longest: int
    mean: float
    known: bool
    """Counted in the processed data set, or a limit of the recipe's; else those of the data set it comes from."""


@dataclass(frozen=True)
class Work:
    """One stage that uses a GPU: its shape before anything is chosen."""

    name: str
    kind: str
    """sft, grpo, contrastive, or evaluate for every stage that only generates."""
    architecture: Architecture
    world: int
    micro: int
    checkpointing: bool
    global_batch: int
    lengths: Lengths
    new_tokens: int
    rows: int
    """Rows that it goes through in all, repetitions (epochs, generations) included; completions for GRPO and PPO,
    pairs for DPO."""
    options: dict[str, Any]

    @property
    def rolls(self) -> bool:
        """Whether its steps sample completions."""
        return self.kind in ROLLOUTS

    @property
    def generates(self) -> bool:
        """Whether it samples or asks for completions at all: DPO does, unless its pairs are in a file."""
        return self.kind == "evaluate" or self.new_tokens > 0

    @property
    def sequences(self) -> int:
        """Sequences that are one row of the batch: DPO's rows are pairs."""
        return 2 if self.kind == "dpo" else 1

    @property
    def trains(self) -> bool:
        """Whether it makes a model."""
        return self.kind != "evaluate"

    def batch(self, micro: int) -> Batch:
        """How the global batch is shared out with at most so many rows at once."""
        return derive(self.global_batch, self.world, micro, self.name)


def work_of(recipe: Recipe, run: RunDir, stage: str, world: int | None = None) -> Work:
    """What a stage does, for `world` processes or as many as the recipe says.

    Raises UserError for a base model whose dimensions are not known, or a batch that does not divide.
    """
    architecture = architecture_of(recipe.model)
    if architecture is None:
        raise UserError(
            "the dimensions of this model are not known", value=recipe.model.base, where="pipeline/fit/models.yaml",
            do="give model.base a local folder with its config.json, or add it there",
        )  # fmt: skip
    kind, own, resources = recipe.stage(stage).kind, recipe.own(stage), recipe.resources[stage]
    kind = "evaluate" if kind == "robustness" else kind
    processes = world or resources.nodes * (resources.processes or max(1, resources.gpus))
    options = recipe.trainer_options(stage) if kind != "evaluate" else {}
    options |= own.generation_options() if kind in ROLLOUTS else {}
    lengths = _lengths(recipe, run, stage, kind, options)
    if kind == "evaluate":
        rows = (recipe.data.rows.get("test") or RELEASED_TEST) * (1 + len(recipe.training_stages()))
        new, batch, micro = own.max_new_tokens, own.batch_size, own.batch_size
    else:
        new, batch, micro = _new_tokens(own, kind, options), own.global_batch_size, own.micro_batch_size
        rows = _rows(recipe, stage, kind, options, batch)
    checkpointing = bool(options.get("gradient_checkpointing", False))
    return Work(
        stage, kind, architecture, processes if kind != "evaluate" else 1, micro, checkpointing, batch, lengths, new,
        rows, options,
    )  # fmt: skip


def _new_tokens(own: Any, kind: str, options: dict[str, Any]) -> int:
    """Most tokens of a sampled completion; 0 where none is sampled."""
    if kind in ROLLOUTS:
        return int(options.get("max_completion_length", option_default("grpo", "max_completion_length")))
    return int(own.max_completion_length) if kind == "dpo" and own.pairs is None else 0


def _rows(recipe: Recipe, stage: str, kind: str, options: dict[str, Any], batch: int) -> int:
    """Rows that training goes through; for GRPO and PPO completions, for DPO pairs."""
    if int(options.get("max_steps", -1)) > 0:
        return int(options["max_steps"]) * batch
    if kind == "contrastive":
        each, rows = parts_of(recipe, stage), _triplets(recipe)
    else:
        each = recipe.own(stage).num_generations if kind in ROLLOUTS else 1
        rows = recipe.data.rows.get(stage) or 10_000
    return int(rows * each * float(options.get("num_train_epochs", 1.0 if kind in ROLLOUTS else 3.0)))


def parts_of(recipe: Recipe, stage: str) -> int:
    """Texts of a triplet that a contrastive stage puts through the model."""
    loss = recipe.own(stage).loss
    return len(PARTS) if loss.contrasts else len(loss.task_inputs)


def _triplets_section(recipe: Recipe) -> Triplets:
    name = next(entry.name for entry in recipe.stages if entry.kind == "triplets")
    own: Triplets = recipe.own(name)
    return own


def _triplets(recipe: Recipe) -> int:
    return _triplets_section(recipe).generated.train if recipe.data.source == "generated" else 10_000


def _lengths(recipe: Recipe, run: RunDir, stage: str, kind: str, options: dict[str, Any]) -> Lengths:
    limit = int(options.get("max_length") or option_default("sft", "max_length")) if kind == "sft" else None
    if any(entry.kind == "triplets" for entry in recipe.stages):
        most = _triplets_section(recipe).max_length
        return Lengths(most, MEAN["test"] * most, known=False)
    if kind == "sft":
        counted = _counted(recipe, run, stage)
        longest = limit or prompt_tokens(recipe, "train")
        return counted or Lengths(longest, min(longest, 1.3 * MEAN["train"] * prompt_tokens(recipe, "train")), True)
    if kind == "dpo" and recipe.own(stage).pairs is not None:
        longest = int(options.get("max_length") or option_default("dpo", "max_length"))
        return Lengths(longest, 0.5 * longest, known=False)
    rows: Literal["train", "test"] = "test" if kind == "evaluate" and recipe.data.source != "generated" else "train"
    most = prompt_tokens(recipe, rows)
    return Lengths(most, MEAN[rows] * most, known=False)


def _counted(recipe: Recipe, run: RunDir, stage: str) -> Lengths | None:
    """Token counts of the rows that preprocess made, when it is done."""
    if not any(KINDS[entry.kind].makes == "dataset" for entry in recipe.stages):
        return None
    path: Path = dag.dataset_of(recipe, run) / f"{stage}.arrow"
    if not path.is_file():
        return None
    from pipeline.training.encode import token_counts  # brings pyarrow, which no other plan needs

    counts = token_counts(path)
    return Lengths(int(counts.max()), float(counts.mean()), known=True)


def prompt_tokens(recipe: Recipe, rows: Literal["train", "test"]) -> int:
    """Most tokens of a prompt: by the task, that of Corr2Cause by its number of variables."""
    if recipe.task != "corr2cause":
        return int((QUESTION + TEMPLATE) / CHARACTERS)
    table, variables = (LONGEST if rows == "train" else LONGEST_TEST), recipe.data.max_variables
    characters = table[min(variables, 6)] * GROWTH ** max(0, variables - 6)
    return int((characters + TEMPLATE) / CHARACTERS)


def training_step(recipe: Recipe, work: Work, micro: int, checkpointing: bool) -> Step:
    """The step that trains, for the longest rows there are."""
    options, model = work.options, recipe.model
    alone = work.batch(micro).accumulation == 1
    packs = bool(options.get("packing") or options.get("padding_free"))
    rows = work.batch(micro).micro * work.sequences
    step = replace(_model_step(recipe, work), rows=rows, tokens=work.lengths.longest)
    if work.kind == "contrastive":
        parts, batched = parts_of(recipe, work.name), recipe.own(work.name).forward == "batched"
        step = replace(step, rows=step.rows * (parts if batched else 1), passes=1 if batched else parts,
                       outputs=min(OUTPUTS, step.tokens - 1))  # fmt: skip
    return replace(
        step, tokens=step.tokens + work.new_tokens, checkpointing=checkpointing, accumulates=not alone,
        optimizer=str(options.get("optim", "adamw_torch_fused")), autocast=model.precision != "fp32",
        loss="full" if options.get("label_smoothing_factor") else "fused",
        padded=work.rolls or (step.rows > 1 and not packs),
    )  # fmt: skip


def generation_step(recipe: Recipe, work: Work, micro: int) -> Step:
    """The step that generates: a batch of evaluation, DPO's samples, or all completions that a step of GRPO uses."""
    rows = work.micro if work.kind == "evaluate" else generated_at_once(recipe, work, micro)
    step = replace(_model_step(recipe, work), rows=rows, tokens=work.lengths.longest, new_tokens=work.new_tokens)
    return replace(step, padded=True)


def generated_at_once(recipe: Recipe, work: Work, micro: int) -> int:
    """Completions that a process generates together: TRL makes those of a whole optimizer step, unless told else."""
    if work.kind == "dpo":
        return int(recipe.own(work.name).sampled_at_once)
    steps = work.options.get("steps_per_generation")
    return work.batch(micro).micro * int(steps) if steps else work.global_batch // work.world


def _told(model: Model) -> Literal["fp32", "bf16", "fp16"]:
    """The precision, which is settled or assumed where steps are predicted."""
    return "bf16" if model.precision == "auto" else model.precision


def _model_step(recipe: Recipe, work: Work) -> Step:
    model, lora = recipe.model, recipe.model.lora
    targets = lora.target_modules if lora else "all-linear"
    return Step(
        config=work.architecture.config, rows=1, tokens=1, precision=_told(model), quantization=model.quantization,
        attention="eager" if model.attention == "eager" else "sdpa", rank=lora.r if lora else 0,
        targets=targets if isinstance(targets, str) else tuple(targets), dropout=lora.dropout if lora else 0.0,
    )  # fmt: skip
