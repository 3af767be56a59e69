"""Supervised fine-tuning on worked completions with TRL's SFTTrainer.

python -m pipeline.stages.sft logs/tiny sft
torchrun --nproc-per-node=2 -m pipeline.stages.sft logs/phi3 sft
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline import dag
from pipeline.fit.cards import peak_tflops
from pipeline.recipe import Recipe, Sft
from pipeline.run import RunDir
from pipeline.training.entry import run_stage
from pipeline.training.ranks import redirect_output
from pipeline.training.stop import StopFlag


def main(logs: Path, stage: str) -> None:
    """Train the stage's model and save it, tokenizer beside it, into the run's model folder."""
    redirect_output()
    stop = StopFlag()
    from datasets import Dataset
    from transformers import set_seed
    from trl import SFTTrainer

    from pipeline.training.arguments import cast_adapters, save_model
    from pipeline.training.callbacks import HealthCallback, MetricsCallback
    from pipeline.training.encode import check_lengths, token_counts
    from pipeline.training.labelled import score_labelled_positions
    from pipeline.training.model_card import write_card
    from pipeline.training.models import (
        load_base_tokenizer,
        load_for_training,
        set_end_of_turn,
        starting_model,
    )
    from pipeline.training.muon import muon_with_adamw
    from pipeline.training.resume import CheckpointCallback
    from pipeline.training.throughput import ThroughputCallback
    from pipeline.training.tracking import track

    run = RunDir.of_logs(logs)
    recipe, _ = run.read_resolved()
    own: Sft = recipe.own(stage)
    source = starting_model(recipe, run, stage)
    tokenizer = load_base_tokenizer(source, recipe.model)
    set_seed(recipe.seed)  # new adapters begin with random weights
    model = load_for_training(source, recipe.model)
    set_end_of_turn(model, tokenizer)
    arguments = sft_arguments(recipe, run, stage)
    path = dag.dataset_of(recipe, run) / f"{stage}.arrow"
    check_lengths(token_counts(path), arguments.max_length, f"{stage}.max_length")
    if not arguments.packing:
        arguments.max_length = None  # no row is longer: the trainer need not make a copy of them, cut
    health = HealthCallback(run, stage, recipe.health)
    score_labelled_positions()
    trainer = SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_file(str(path)),
        processing_class=tokenizer,
        callbacks=[MetricsCallback(run, stage), health],
        optimizers=(muon_with_adamw(model, own.muon, arguments) if own.muon else None, None),
    )
    cast_adapters(trainer.model)
    track(trainer, recipe, run, stage, dag.build(recipe, run)[stage].fingerprint)
    checks = dev_checks(recipe, run, stage, trainer, tokenizer)
    for each in (*checks, ThroughputCallback(trainer, peak_tflops())):
        trainer.add_callback(each)
    saver = CheckpointCallback(recipe, run, stage, trainer, stop, (health, *checks))
    trainer.add_callback(saver)
    saver.train()
    for check in checks:
        check.finish()
    save_model(trainer, tokenizer, run.model(stage))
    if trainer.accelerator.is_main_process:
        write_card(run, recipe, stage, source, run.model(stage))


def dev_checks(recipe: Recipe, run: RunDir, stage: str, trainer: Any, tokenizer: Any) -> list[Any]:
    """What measures the model on dev rows before and after, where the recipe asks for it."""
    from pipeline.stages.guard import Asking
    from pipeline.stages.objective import ObjectiveCallback
    from pipeline.stages.rows import read_rows

    own: Sft = recipe.own(stage)
    if own.dev is None:
        return []
    rows = read_rows(dag.dataset_of(recipe, run) / "dev.jsonl")[: own.dev.rows]
    asking = Asking(tokenizer, own.dev.max_completion_length, own.micro_batch_size)

    def measure() -> dict[str, float]:
        return asking.values(trainer.accelerator.unwrap_model(trainer.model), rows, recipe.seed)

    return [ObjectiveCallback(run, stage, measure)]


def sft_arguments(recipe: Recipe, run: RunDir, stage: str) -> Any:
    """SFTConfig from the recipe: its section's options and what other keys of the recipe decide."""
    from trl import SFTConfig

    from pipeline.training.arguments import common_arguments

    own: Sft = recipe.own(stage)
    options = {"packing": False, "dataset_num_proc": None, **recipe.trainer_options(stage)}
    return SFTConfig(**common_arguments(recipe, run, stage, own.global_batch_size, own.micro_batch_size), **options)


if __name__ == "__main__":
    run_stage(main)
