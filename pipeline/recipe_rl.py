"""Settings of the stages that learn from judged completions: grpo, ppo and dpo, and what they measure on dev rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipeline.errors import UserError
from pipeline.recipe_questions import Reward
from pipeline.recipe_rewards import Rewards
from pipeline.recipe_stage import Checkpoints, StageSettings
from pipeline.settings import Positive, Section, Share, Tree

Above = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class DevCheck(Section):
    """How well a stage's model answers dev rows, asked before its first step and after its last one."""

    rows: Positive = 256
    max_completion_length: Positive = 512
    """Most tokens of an answer."""


class Guard(Section):
    """Watches F1 (accuracy, where the task has no classes) on dev rows in training and keeps the best weights."""

    every_steps: Positive = 20
    rows: Positive = 256
    stop_below: Share = 0.5
    """Stop when it falls below this share of what the stage began with; 0 never stops."""


Generation = Literal["transformers", "continuous", "vllm-colocate", "vllm-server"]


class Rollouts(StageSettings):
    """What grpo and ppo share: completions are sampled, judged by the task's scorer, and learned from."""

    makes = "model"

    global_batch_size: Positive
    """Completions in one optimizer step: prompts times num_generations."""
    micro_batch_size: Positive = 8
    num_generations: Annotated[int, Field(ge=2)] = 8
    """Completions of each prompt."""
    rewards: Rewards = Rewards()
    """Of the task corr2cause."""
    reward: Reward | None = None
    """Of the other tasks; null: that of the task, 1 for a right answer and 0 for another."""
    generation: Generation = "transformers"
    """How completions are made; see docs/performance.md."""
    generation_gpus: Positive = 1
    """With `vllm-server`: GPUs of the node that the server has for itself."""
    guard: Guard | None = Guard()
    checkpoint: Checkpoints = Checkpoints()

    def generation_options(self) -> Tree:
        """The options of GRPOConfig that `generation` stands for."""
        match self.generation:
            case "continuous":
                return {"use_transformers_continuous_batching": True}
            case "vllm-colocate" | "vllm-server":
                return {"use_vllm": True, "vllm_mode": self.generation.removeprefix("vllm-")}
            case _:
                return {}

    @model_validator(mode="after")
    def _groups(self) -> Rollouts:
        if self.global_batch_size % self.num_generations:
            raise ValueError(
                f"global_batch_size {self.global_batch_size} must divide by num_generations {self.num_generations}"
            )
        return self


class Grpo(Rollouts):
    """Own keys of a `grpo` section; every other key is an option of TRL's GRPOConfig."""


class Ppo(Rollouts):
    """Own keys of a `ppo` section; every other key is an option of TRL's GRPOConfig (`epsilon` clips the policy's
    ratio, `num_iterations` is the number of epochs over a rollout)."""

    kl_coefficient: Weight = 0.05
    """What a token costs for being likelier than under the model that the stage began with; 0 needs no reference."""
    gamma: Share = 1.0
    """Discount of a reward a token later."""
    gae_lambda: Share = 1.0
    """Weight of longer returns in the advantages: 1 is the whole return, 0 one step and the value after it. Below 1 a
    reward at the end of a long completion hardly reaches its beginning before the value model has learned."""
    value_clip: Above = 0.2
    """Furthest that a value may move from what it was in the rollout before its gradient stops."""
    value_learning_rate: Above = 1e-4
    """Of the value model; the policy learns at `learning_rate`."""


class Dpo(StageSettings):
    """Own keys of a `dpo` section; every other key is an option of TRL's DPOConfig."""

    makes = "model"

    global_batch_size: Positive
    """Pairs in one optimizer step."""
    micro_batch_size: Positive = 4
    """Most pairs that a process takes at once."""
    pairs: str | None = None
    """A file of `prompt`, `chosen`, `rejected`; null: sampled from the model that the stage begins with, a right and a
    wrong completion for each of its rows that has both."""
    samples: Annotated[int, Field(ge=2)] = 8
    """Completions of each row of which its pair is chosen."""
    temperature: Above = 0.8
    max_completion_length: Positive = 512
    """Most tokens of a sampled completion, and of an answer that the guard asks for."""
    sampled_at_once: Positive = 64
    """Completions that a process samples together."""
    held_out: Positive = 64
    """Most pairs that are kept out of training, to measure preference accuracy and margin on."""
    guard: Guard | None = Guard()
    checkpoint: Checkpoints = Checkpoints()

    @model_validator(mode="before")
    @classmethod
    def _sampling(cls, tree: Any) -> Any:
        unused = {"samples", "temperature", "sampled_at_once"} & tree.keys() if isinstance(tree, dict) else set()
        if unused and tree.get("pairs") is not None:
            raise ValueError(f"{', '.join(sorted(unused))} are for sampled pairs: `pairs` names a file")
        return tree


SMOOTHED = {"robust", "exo_pair", "aot", "aot_unpaired"}
"""Losses of TRL's DPO that read `label_smoothing`; the usual one, `sigmoid`, does not."""


def check_smoothing(options: Mapping[str, Any], where: str) -> None:
    """Raise UserError for a `label_smoothing` that the section's losses would pass over in silence."""
    losses = options.get("loss_type", "sigmoid")
    if options.get("label_smoothing") and not SMOOTHED & set(losses if isinstance(losses, list) else [losses]):
        raise UserError(
            f"label_smoothing means nothing to the loss {losses}", value=options["label_smoothing"], where=where,
            do="add loss_type: robust (Chowdhury et al. 2024) or one of " + ", ".join(sorted(SMOOTHED - {"robust"})),
        )  # fmt: skip
