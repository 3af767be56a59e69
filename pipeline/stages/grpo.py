"""Group relative policy optimization with TRL's GRPOTrainer: rewards from the task's scorer, a guard on dev F1.

python -m pipeline.stages.grpo logs/tiny grpo
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline import dag
from pipeline.errors import UserError
from pipeline.question_recipe import reward_of, task_of
from pipeline.recipe import Grpo, Recipe
from pipeline.rewards.sandbox import require_sandbox
from pipeline.run import RunDir
from pipeline.training.entry import run_stage
from pipeline.training.ranks import redirect_output
from pipeline.training.served import GROUP_PORT, URL
from pipeline.training.stop import StopFlag


def main(logs: Path, stage: str) -> None:
    """Train the stage's model and save the best one by dev F1, tokenizer beside it, into the run's model folder."""
    redirect_output()
    stop = StopFlag()
    from transformers import set_seed
    from trl import GRPOTrainer

    from pipeline.stages.guard import GuardCallback
    from pipeline.stages.rows import prompt_dataset, read_rows
    from pipeline.training.arguments import cast_adapters, keep_adapters, save_model
    from pipeline.training.callbacks import HealthCallback, MetricsCallback
    from pipeline.training.model_card import write_card
    from pipeline.training.models import (
        load_base_tokenizer,
        load_for_training,
        set_end_of_turn,
        starting_model,
    )
    from pipeline.training.resume import CheckpointCallback
    from pipeline.training.tracking import track

    run = RunDir.of_logs(logs)
    recipe, _ = run.read_resolved()
    own: Grpo = recipe.own(stage)
    require_sandbox([task_of(recipe, stage)])
    source = starting_model(recipe, run, stage)
    tokenizer = load_base_tokenizer(source, recipe.model)
    set_seed(recipe.seed)  # new adapters begin with random weights
    model = load_for_training(source, recipe.model)
    set_end_of_turn(model, tokenizer)
    data = dag.dataset_of(recipe, run)
    health = HealthCallback(run, stage, recipe.health)
    prompts, args = prompt_dataset(data / f"{stage}.jsonl"), grpo_arguments(recipe, run, stage)
    rendered = [row["prompt"] for row in read_rows(data / f"{stage}.jsonl")]
    check_rollouts(tokenizer, rendered, args.max_completion_length, model.config, stage)
    rewards = reward_functions(recipe, stage, prompts, args.max_completion_length)
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=rewards,
        args=args,
        train_dataset=prompts,
        processing_class=tokenizer,
        callbacks=[MetricsCallback(run, stage), health],
    )
    cast_adapters(trainer.model)
    if own.generation == "continuous":
        keep_adapters(trainer)
    guard = None
    if own.guard is not None:
        guard = GuardCallback(run, stage, own.guard, health, trainer, tokenizer, read_rows(data / "dev.jsonl"))
        trainer.add_callback(guard)
    track(trainer, recipe, run, stage, dag.build(recipe, run)[stage].fingerprint)
    saver = CheckpointCallback(recipe, run, stage, trainer, stop, (health, guard) if guard else (health,))
    trainer.add_callback(saver)
    saver.train()
    if guard is not None:
        guard.restore_best()
    save_model(trainer, tokenizer, run.model(stage))
    if trainer.accelerator.is_main_process:
        write_card(run, recipe, stage, source, run.model(stage))


def check_rollouts(tokenizer: Any, prompts: Sequence[str], new: int, config: Any, stage: str) -> None:
    """Raise UserError when the longest prompt (texts through the chat template) and a completion of `new` tokens are more
    than the model was made for."""
    context = getattr(config, "max_position_embeddings", None)
    longest = max(map(len, tokenizer(list(prompts), add_special_tokens=False)["input_ids"]))
    if context is not None and longest + new > context:
        raise UserError(
            f"the longest prompt has {longest} tokens; with a completion they pass the {context} of the context",
            value=new, where=f"{stage}.max_completion_length",
            do=f"use at most {max(0, context - longest)}, or lower data.max_variables",
        )  # fmt: skip


def reward_functions(recipe: Recipe, stage: str, prompts: Any, longest: int) -> list[Any]:
    """The reward functions of the stage's task, in the order of its weights."""
    from pipeline.rewards.corr2cause import Scorer
    from pipeline.rewards.questions import QuestionScorer

    if recipe.task == "corr2cause":
        return [*Scorer(recipe.own(stage).rewards, list(prompts["label"]), longest).functions()]
    return [*QuestionScorer(reward_of(recipe, stage), longest).functions()]


def reward_weights(recipe: Recipe, stage: str) -> list[float]:
    """What each of the reward functions weighs in the sum."""
    if recipe.task == "corr2cause":
        return list(recipe.own(stage).rewards.weights().values())
    return [part.weight for part in reward_of(recipe, stage).summed()]


def grpo_arguments(recipe: Recipe, run: RunDir, stage: str) -> Any:
    """GRPOConfig from the recipe: its section's options and what other keys of the recipe decide."""
    from trl import GRPOConfig

    from pipeline.training.arguments import common_arguments
    from pipeline.training.models import revision_of, starting_model

    own: Grpo = recipe.own(stage)
    common = common_arguments(recipe, run, stage, own.global_batch_size, own.micro_batch_size)
    weights = reward_weights(recipe, stage)
    options = {"num_generations": own.num_generations, "reward_weights": weights, **recipe.trainer_options(stage)}
    options |= own.generation_options()
    if URL in os.environ:
        options |= {"vllm_server_base_url": os.environ[URL], "vllm_group_port": int(os.environ[GROUP_PORT])}
    revision = revision_of(starting_model(recipe, run, stage), recipe.model)
    if revision is not None:  # the trainer loads the reference model by its name, anew
        options["model_init_kwargs"] = {"revision": revision, **(options.get("model_init_kwargs") or {})}
    return GRPOConfig(**common, **options)


if __name__ == "__main__":
    run_stage(main)
