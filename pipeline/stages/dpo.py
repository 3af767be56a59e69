"""Direct preference optimization with TRL's DPOTrainer (Rafailov et al. 2023, arXiv 2305.18290).

python -m pipeline.stages.dpo logs/tiny-math-dpo dpo
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline import dag
from pipeline.errors import UserError
from pipeline.fit.cards import peak_tflops
from pipeline.question_recipe import task_of
from pipeline.recipe import Recipe
from pipeline.recipe_rl import Dpo
from pipeline.rewards.sandbox import require_sandbox
from pipeline.run import RunDir
from pipeline.training.entry import run_stage
from pipeline.training.ranks import redirect_output
from pipeline.training.stop import StopFlag


def main(logs: Path, stage: str) -> None:
    """Make or read the pairs, train the stage's model on them and save it into the run's model folder."""
    redirect_output()
    stop = StopFlag()
    from datasets import Dataset
    from transformers import set_seed

    from pipeline.training.arguments import cast_adapters, save_model
    from pipeline.training.callbacks import HealthCallback, MetricsCallback
    from pipeline.training.labelled import score_labelled_positions
    from pipeline.training.model_card import write_card
    from pipeline.training.models import load_base_tokenizer, load_for_training, set_end_of_turn, starting_model
    from pipeline.training.preferences import PreferenceTrainer
    from pipeline.training.resume import CheckpointCallback
    from pipeline.training.throughput import ThroughputCallback
    from pipeline.training.tracking import track

    run = RunDir.of_logs(logs)
    recipe, _ = run.read_resolved()
    require_sandbox([task_of(recipe, stage)])
    source = starting_model(recipe, run, stage)
    tokenizer = load_base_tokenizer(source, recipe.model)
    set_seed(recipe.seed)  # new adapters begin with random weights
    model = load_for_training(source, recipe.model)
    set_end_of_turn(model, tokenizer)
    arguments = dpo_arguments(recipe, run, stage)
    rows, held_out, figures = pair_rows(recipe, run, stage, model, tokenizer, stop, arguments.max_length)
    arguments.max_length = None  # no pair is longer: nothing is to be cut
    health = HealthCallback(run, stage, recipe.health)
    score_labelled_positions()
    trainer = PreferenceTrainer(
        model=model, args=arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer,
        callbacks=[MetricsCallback(run, stage), health],
    )  # fmt: skip
    cast_adapters(trainer.model)
    objective = objective_of(run, stage, trainer, held_out, figures)
    guard = guard_of(recipe, run, stage, trainer, tokenizer, health)
    for callback in (objective, *guard, ThroughputCallback(trainer, peak_tflops())):
        trainer.add_callback(callback)
    track(trainer, recipe, run, stage, dag.build(recipe, run)[stage].fingerprint)
    saver = CheckpointCallback(recipe, run, stage, trainer, stop, (health, objective, *guard))
    trainer.add_callback(saver)
    saver.train()
    for each in (*guard, objective):
        each.finish()
    save_model(trainer, tokenizer, run.model(stage))
    if trainer.accelerator.is_main_process:
        write_card(run, recipe, stage, source, run.model(stage))


def pair_rows(
    recipe: Recipe, run: RunDir, stage: str, model: Any, tokenizer: Any, stop: StopFlag, longest: int | None
) -> tuple[list[Any], list[Any], dict[str, float]]:
    """(token ids of the pairs to learn from, of those held out, figures about them).

    Raises UserError when no pair is left.
    """
    from pipeline.stages.pairs import Sampler, encoded, pairs_of_file, sampled_pairs
    from pipeline.stages.rows import read_rows
    from pipeline.training.models import on_device

    own: Dpo = recipe.own(stage)
    if own.pairs is not None:
        pairs = pairs_of_file(Path(own.pairs), own.held_out, tokenizer, recipe.seed)
    else:
        data = dag.dataset_of(recipe, run)
        sampler = Sampler(recipe, run, stage, on_device(model, recipe.model), tokenizer, stop)
        pairs = sampled_pairs(sampler, read_rows(data / f"{stage}.jsonl"), read_rows(data / "dev.jsonl"))
    train, held_out = (encoded(each, tokenizer, longest) for each in (pairs.train, pairs.held_out))
    if not train:
        raise UserError(f"all {len(pairs.train)} pairs are longer than the limit", value=longest,
                        where=f"{stage}.max_length", do="raise it")  # fmt: skip
    return train, held_out, {**pairs.figures, "pairs_too_long": len(pairs.train) - len(train)}


def objective_of(run: RunDir, stage: str, trainer: Any, held_out: list[Any], figures: dict[str, float]) -> Any:
    """Measures preference accuracy and margin on the held-out pairs; made before training, it knows the reference."""
    from pipeline.stages.objective import ObjectiveCallback
    from pipeline.training.preferences import preference_values

    reference = trainer.log_probabilities(held_out)

    def measure() -> dict[str, float]:
        return preference_values(trainer.log_probabilities(held_out), reference, trainer.args.beta)

    return ObjectiveCallback(run, stage, measure, figures)


def guard_of(recipe: Recipe, run: RunDir, stage: str, trainer: Any, tokenizer: Any, health: Any) -> list[Any]:
    """The guard on dev rows, where the recipe has one."""
    from pipeline.stages.guard import Asking, GuardCallback
    from pipeline.stages.rows import read_rows

    own: Dpo = recipe.own(stage)
    if own.guard is None:
        return []
    rows = read_rows(dag.dataset_of(recipe, run) / "dev.jsonl")
    asking = Asking(tokenizer, own.max_completion_length, own.sampled_at_once)
    return [GuardCallback(run, stage, own.guard, health, trainer, asking, rows)]


def dpo_arguments(recipe: Recipe, run: RunDir, stage: str) -> Any:
    """DPOConfig from the recipe: its section's options and what other keys of the recipe decide."""
    from trl import DPOConfig

    from pipeline.training.arguments import common_arguments
    from pipeline.training.models import revision_of, starting_model

    own: Dpo = recipe.own(stage)
    common = common_arguments(recipe, run, stage, own.global_batch_size, own.micro_batch_size)
    options = recipe.trainer_options(stage)
    revision = revision_of(starting_model(recipe, run, stage), recipe.model)
    if revision is not None:  # the trainer loads the reference model by its name, anew
        options["model_init_kwargs"] = {"revision": revision, **(options.get("model_init_kwargs") or {})}
    return DPOConfig(**common, **options)


if __name__ == "__main__":
    run_stage(main)
