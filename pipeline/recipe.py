"""The recipe: one YAML a model or experiment that says what to train. Schema, and what each key means."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.recipe_contrastive import Contrastive, Robustness, Triplets
from pipeline.recipe_data import Data
from pipeline.recipe_evaluate import Evaluate
from pipeline.recipe_model import Lora as Lora
from pipeline.recipe_model import Model as Model
from pipeline.recipe_model import ScratchModel as ScratchModel
from pipeline.recipe_model import Tokenizer as Tokenizer
from pipeline.recipe_questions import SOURCES, QuestionTask
from pipeline.recipe_rl import DevCheck, Dpo, Grpo, Ppo, Rollouts
from pipeline.recipe_stage import Checkpoints, StageSettings
from pipeline.settings import Count, Positive, Section, Share, Tree

NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""Names of runs and stages: they become folder names, Slurm job names and parts of file names."""


class Preprocess(StageSettings):
    """The preprocess stage has no settings of its own: see `data`."""

    makes = "dataset"


class Muon(Section):
    """The matrices inside the layers are trained by Muon, all else by AdamW with the section's own options."""

    learning_rate: Annotated[float, Field(gt=0)] = 0.02
    momentum: Share = 0.95
    weight_decay: Annotated[float, Field(ge=0)] = 0.0


class Sft(StageSettings):
    """Own keys of an `sft` section; every other key is an option of TRL's SFTConfig."""

    makes = "model"

    global_batch_size: Positive
    micro_batch_size: Positive = 8
    """Most rows a process takes at once; accumulation fills the global batch."""
    muon: Muon | None = None
    dev: DevCheck | None = None
    checkpoint: Checkpoints = Checkpoints()


KINDS: dict[str, type[StageSettings]] = {
    "preprocess": Preprocess,
    "sft": Sft,
    "grpo": Grpo,
    "dpo": Dpo,
    "ppo": Ppo,
    "evaluate": Evaluate,
    "triplets": Triplets,
    "contrastive": Contrastive,
    "robustness": Robustness,
}
"""Stage kinds and the own keys of their sections. A kind that makes a model also takes the trainer's options."""


def check_time(value: str) -> str:
    """A time limit as it was written. Raises ValueError for what is none."""
    if not re.fullmatch(r"(\d+-)?\d{1,2}:\d{2}(:\d{2})?", value):
        raise ValueError("a time is written HH:MM:SS or D-HH:MM:SS, in quotes or not")
    return value


class Resources(Section):
    """What a stage asks of the machine; none of it changes results."""

    time: str = "01:00:00"
    nodes: Positive = 1
    gpus: Count = 0
    """GPUs a node."""
    cpus: Positive = 2
    memory: str = "8G"
    launcher: Literal["none", "torchrun", "accelerate", "deepspeed"] = "none"
    """How the processes are started; `none` is one process."""
    processes: Positive | None = None
    """Processes a node; null: one a GPU, one without GPUs."""
    deepspeed: str | None = None
    """DeepSpeed configuration, a file in configs/deepspeed or anywhere by its path."""
    fsdp: Literal["full_shard", "shard_grad_op"] | None = None
    """Share out weights, gradients and optimizer (`full_shard`), or the latter two, by PyTorch's FSDP; GPUs only."""
    stop_lead: Positive = 120
    """Seconds before the time limit at which the stage saves and goes back to the queue; at most a quarter of it."""
    segments: Positive = 1
    """Jobs one after the other that do the stage's work, where one may not last long enough or be requeued."""
    stalled_requeues: Positive = 3
    """Requeues in a row without a newer checkpoint after which the stage fails."""
    remedies: Count = 3
    """Most changes that failures may make by themselves (micro-batch, memory, node, debug settings); 0: none."""
    exclude: list[str] = Field(default_factory=list)
    """Nodes that its jobs must not get."""
    debug: bool = False
    """Debug settings of torch.distributed and NCCL."""

    @field_validator("time")
    @classmethod
    def _time(cls, value: str) -> str:
        return check_time(value)

    @field_validator("memory")
    @classmethod
    def _memory(cls, value: str) -> str:
        if not re.fullmatch(r"[1-9]\d*[MGT]", value):
            raise ValueError("memory is written as a number with M, G or T, such as 32G")
        return value

    @field_validator("exclude")
    @classmethod
    def _exclude(cls, values: list[str]) -> list[str]:
        for value in values:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._\[\],-]*", value):
                raise ValueError(f"{value!r} is not the name of a node")
        return values

    @model_validator(mode="after")
    def _launch(self) -> Resources:
        if self.launcher == "none" and (self.gpus > 1 or self.nodes > 1 or (self.processes or 1) > 1):
            raise ValueError(
                f"launcher none starts one process, but {self.nodes} node(s), {self.gpus} GPU(s) and "
                f"processes {self.processes} are asked for: use torchrun, accelerate or deepspeed"
            )
        if (self.deepspeed is not None) != (self.launcher == "deepspeed"):
            raise ValueError("launcher deepspeed and the key deepspeed (its configuration file) go together")
        if self.fsdp is not None and self.launcher not in ("torchrun", "accelerate"):
            raise ValueError("fsdp shares out over processes: use launcher torchrun or accelerate")
        return self


class Tracking(Section):
    """Where metrics go beside metrics.jsonl."""

    report_to: list[Literal["wandb", "tensorboard"]] = Field(default_factory=list)
    mode: Literal["offline", "online", "disabled"] = "offline"
    """Of W&B; WANDB_MODE in the environment outweighs it. `sync` sends what was written offline."""
    project: str = "rlcausality"
    run_name: str | None = None
    """Name of the run in W&B and TensorBoard, `-STAGE` added where a recipe trains more than one; null: RUN-STAGE."""


class Health(Section):
    """What the training health checks do when they find something."""

    stop: bool = False
    """End the stage when the loss is not finite, gradients are zero or answers go one-sided."""
    kl_max: Annotated[float, Field(gt=0)] = 1.0
    one_sided_share: Share = 0.98
    """Answers with the same word above this share count as one-sided."""


class StageEntry(Section):
    """One stage of the list: `sft`, or `{name: grpo2, kind: grpo}` for a second one of a kind."""

    name: str
    kind: str
    needs: list[str] | None = None
    """Names of the stages whose outputs it reads; null: the one before it in the list."""


class Recipe(Section):
    """A whole recipe. `sections` holds the settings of each stage by name, trainer options included."""

    name: str
    task: Literal["corr2cause", "injection"] | QuestionTask = "corr2cause"
    seed: Count = 42
    model: Model
    data: Data = Data()
    stages: list[StageEntry]
    sections: dict[str, Tree]
    resources: dict[str, Resources]
    tracking: Tracking = Tracking()
    health: Health = Health()

    @model_validator(mode="before")
    @classmethod
    def _source(cls, tree: Any) -> Any:
        """Rows come from where those of the task are published, unless the recipe says."""
        data = tree.get("data") or {}
        if not isinstance(data, dict) or tree.get("task") not in SOURCES or data.get("source") is not None:
            return tree
        return {**tree, "data": {**data, "source": SOURCES[tree["task"]]}}

    def training_stages(self) -> list[str]:
        """Names of the stages that make a model, in order."""
        return [entry.name for entry in self.stages if KINDS[entry.kind].makes == "model"]

    def stage(self, name: str) -> StageEntry:
        """The entry of a stage."""
        return next(entry for entry in self.stages if entry.name == name)

    def own(self, name: str) -> Any:
        """Own settings (Sft, Dpo, Evaluate ...) of a stage, without the trainer's options."""
        model = KINDS[self.stage(name).kind]
        return model.model_validate({k: v for k, v in self.sections[name].items() if k in model.model_fields})

    def trainer_options(self, name: str) -> Tree:
        """The trainer's options of a training stage's section, as they go to SFTConfig, GRPOConfig or DPOConfig."""
        return {k: v for k, v in self.sections[name].items() if k not in KINDS[self.stage(name).kind].model_fields}

    def warnings(self) -> list[str]:
        """What is allowed but known to go wrong, one line each, with its place."""
        return [
            f"{entry.name}.rewards: {told}"
            for entry in self.stages
            if issubclass(KINDS[entry.kind], Rollouts) and self.task == "corr2cause"
            for told in self.own(entry.name).rewards.warnings(self.data.balance, self.trainer_options(entry.name))
        ]
