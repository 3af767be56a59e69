"""What grpo and ppo share: prompts, rewards from the task's scorer, the guard, training and saving."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from pipeline import dag
from pipeline.errors import UserError
from pipeline.evaluation.generate import Completion
from pipeline.fit.cards import peak_tflops
from pipeline.question_recipe import reward_of, task_of
from pipeline.recipe import Recipe
from pipeline.recipe_rl import Rollouts
from pipeline.rewards.corr2cause import Scorer
from pipeline.rewards.questions import QuestionScorer
from pipeline.rewards.sandbox import require_sandbox
from pipeline.run import RunDir
from pipeline.stages.dev import Row
from pipeline.stages.guard import Asking, GuardCallback
from pipeline.stages.objective import ObjectiveCallback
from pipeline.stages.rows import columns_of, prompt_dataset, read_rows
from pipeline.training.arguments import cast_adapters, common_arguments, keep_adapters, save_model
from pipeline.training.callbacks import HealthCallback, MetricsCallback
from pipeline.training.labelled import score_labelled_positions
from pipeline.training.model_card import write_card
from pipeline.training.models import (
    load_base_tokenizer,
    load_for_training,
    revision_of,
    set_end_of_turn,
    starting_model,
)
from pipeline.training.resume import CheckpointCallback, Keeper
from pipeline.training.served import GROUP_PORT, URL
from pipeline.training.stop import StopFlag
from pipeline.training.throughput import ThroughputCallback
from pipeline.training.tracking import track


@dataclass(frozen=True)
class Rollout:
    """A stage that samples completions and learns from their rewards: all that its trainer is made of."""

    run: RunDir
    recipe: Recipe
    stage: str
    source: str
    tokenizer: Any
    health: HealthCallback
    scorer: Scorer | QuestionScorer
    arguments: dict[str, Any]
    """Of GRPOTrainer."""

    @property
    def own(self) -> Any:
        """The stage's own settings (Grpo, Ppo)."""
        return self.recipe.own(self.stage)


def prepared(logs: Path, stage: str, **options: Any) -> Rollout:
    """The stage's model, prompts and rewards; `options` are further ones of GRPOConfig, if the recipe has no others."""
    run = RunDir.of_logs(logs)
    recipe, _ = run.read_resolved()
    require_sandbox([task_of(recipe, stage)])
    source = starting_model(recipe, run, stage)
    tokenizer = load_base_tokenizer(source, recipe.model)
    set_seed(recipe.seed)  # new adapters begin with random weights
    score_labelled_positions()
    model = load_for_training(source, recipe.model)
    set_end_of_turn(model, tokenizer)
    health = HealthCallback(run, stage, recipe.health)
    rows = dag.dataset_of(recipe, run) / f"{stage}.jsonl"
    prompts, args = prompt_dataset(rows), rollout_arguments(recipe, run, stage, **options)
    rendered = [row["prompt"] for row in read_rows(rows)]
    check_rollouts(tokenizer, rendered, args.max_completion_length, model.config, stage)
    scorer = scorer_of(recipe, stage, prompts, args.max_completion_length)
    arguments = {
        "model": model,
        "reward_funcs": [*scorer.functions()],
        "args": args,
        "train_dataset": prompts,
        "processing_class": tokenizer,
        "callbacks": [MetricsCallback(run, stage), health],
    }
    return Rollout(run, recipe, stage, source, tokenizer, health, scorer, arguments)


def check_rollouts(tokenizer: Any, prompts: Sequence[str], new: int, config: Any, stage: str) -> None:
    """Raise UserError when the longest prompt (through the chat template) and a completion of `new` tokens are more
    than the model was made for."""
    context = getattr(config, "max_position_embeddings", None)
    longest = max(map(len, tokenizer(list(prompts), add_special_tokens=False)["input_ids"]))
    if context is not None and longest + new > context:
        raise UserError(
            f"the longest prompt has {longest} tokens; with a completion they pass the {context} of the context",
            value=new, where=f"{stage}.max_completion_length",
            do=f"use at most {max(0, context - longest)}, or lower data.max_variables",
        )  # fmt: skip


def grpo_trainer(rollout: Rollout) -> Any:
    """GRPOTrainer, or the one in which every reasoning step answers for itself, where the recipe weighs that."""
    weight = rollout.own.rewards.step_credit
    if isinstance(rollout.scorer, Scorer) and weight:
        from pipeline.training.step_credit import StepCreditTrainer

        return StepCreditTrainer(weight=weight, last_scores=rollout.scorer.last, **rollout.arguments)
    from trl import GRPOTrainer

    return GRPOTrainer(**rollout.arguments)


def train(rollout: Rollout, trainer: Any, stop: StopFlag, keepers: Sequence[Keeper] = ()) -> None:
    """Train from the newest checkpoint or the beginning; the best weights by the guard are in the model then."""
    run, recipe, stage, health = rollout.run, rollout.recipe, rollout.stage, rollout.health
    cast_adapters(trainer.model)
    if rollout.own.generation == "continuous":
        keep_adapters(trainer)
    watchers = watchers_of(rollout, trainer)
    for each in (*watchers, ThroughputCallback(trainer, peak_tflops())):
        trainer.add_callback(each)
    track(trainer, recipe, run, stage, dag.build(recipe, run)[stage].fingerprint)
    saver = CheckpointCallback(recipe, run, stage, trainer, stop, (health, *watchers, *keepers))
    trainer.add_callback(saver)
    saver.train()
    for each in watchers:
        each.finish()


def watchers_of(rollout: Rollout, trainer: Any) -> list[Any]:
    """The guard, and what measures the mean reward of sampled answers before and after, both on the same dev rows."""
    own: Rollouts = rollout.own
    if own.guard is None:
        return []
    run, stage, args = rollout.run, rollout.stage, trainer.args
    rows = read_rows(dag.dataset_of(rollout.recipe, run) / "dev.jsonl")[: own.guard.rows]
    asking = Asking(rollout.tokenizer, args.max_completion_length, args.per_device_train_batch_size)

    def reward() -> dict[str, float]:
        model = trainer.accelerator.unwrap_model(trainer.model)
        sampled = asking.completions(model, rows, args.seed, args.temperature)
        return mean_reward(rollout.arguments["reward_funcs"], args.reward_weights, rows, sampled)

    guard = GuardCallback(run, stage, own.guard, rollout.health, trainer, asking, rows)
    return [guard, ObjectiveCallback(run, stage, reward)]


def save(rollout: Rollout, trainer: Any) -> None:
    """Save the model, tokenizer and card beside it, into the run's model folder."""
    folder = rollout.run.model(rollout.stage)
    save_model(trainer, rollout.tokenizer, folder)
    if trainer.accelerator.is_main_process:
        write_card(rollout.run, rollout.recipe, rollout.stage, rollout.source, folder)


def scorer_of(recipe: Recipe, stage: str, prompts: Any, longest: int) -> Scorer | QuestionScorer:
    """What judges the stage's completions; its reward functions are in the order of their weights."""
    if recipe.task == "corr2cause":
        return Scorer(recipe.own(stage).rewards, list(prompts["label"]), longest)
    return QuestionScorer(reward_of(recipe, stage), longest)


def reward_weights(recipe: Recipe, stage: str) -> list[float]:
    """What each of the reward functions weighs in the sum."""
    if recipe.task == "corr2cause":
        return list(recipe.own(stage).rewards.weights().values())
    return [part.weight for part in reward_of(recipe, stage).summed()]


def mean_reward(
    functions: Sequence[Callable[..., Any]],
    weights: Sequence[float],
    rows: Sequence[Row],
    completions: Sequence[Completion],
) -> dict[str, float]:
    """The mean reward of a completion for each row; rows that cannot be graded are left out."""
    batch = {**columns_of(rows), "completion_ids": [[0] * one.tokens for one in completions]}
    texts = [one.text for one in completions]
    parts = [f(completions=texts, log_metric=lambda name, value: None, **batch) for f in functions]
    values = torch.tensor([[torch.nan if v is None else v for v in part] for part in parts])
    total = (values * torch.tensor(weights).unsqueeze(1)).nansum(0)[~values.isnan().all(0)]
    return {"reward": total.mean().item()} if len(total) else {}


def rollout_arguments(recipe: Recipe, run: RunDir, stage: str, **more: Any) -> Any:
    """GRPOConfig from the recipe: its section's options and what other keys of the recipe decide."""
    from trl import GRPOConfig

    own: Rollouts = recipe.own(stage)
    common = common_arguments(recipe, run, stage, own.global_batch_size, own.micro_batch_size)
    weights = reward_weights(recipe, stage)
    options = {"num_generations": own.num_generations, "reward_weights": weights, **recipe.trainer_options(stage)}
    options |= own.generation_options()
    if URL in os.environ:
        options |= {"vllm_server_base_url": os.environ[URL], "vllm_group_port": int(os.environ[GROUP_PORT])}
    revision = revision_of(starting_model(recipe, run, stage), recipe.model)
    if revision is not None:  # the trainer loads the reference model by its name, anew
        options["model_init_kwargs"] = {"revision": revision, **(options.get("model_init_kwargs") or {})}
    return GRPOConfig(**{**common, **more, **options})
