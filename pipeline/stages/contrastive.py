"""Causal contrastive training on triplets: benign representations together, injected ones away, the task kept.

python -m pipeline.stages.contrastive logs/robust-tiny contrastive
python -m pipeline.stages.contrastive logs/robust-tiny contrastive --debug
python -m pipeline.stages.contrastive logs/robust-tiny contrastive --resume logs/.../checkpoints/checkpoint-500
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pipeline import dag
from pipeline.errors import UserError
from pipeline.fit.cards import peak_tflops
from pipeline.recipe import Recipe
from pipeline.recipe_contrastive import Contrastive
from pipeline.run import RunDir
from pipeline.training.ranks import redirect_output
from pipeline.training.stop import StopFlag

DEBUG_STEPS = 3
DEBUG_ROWS = 32


def main(logs: Path, stage: str, resume: Path | None = None, debug: bool = False) -> None:
    """Train the stage's model and save the best one, tokenizer beside it, into the run's model folder.

    `resume` goes on from that checkpoint instead of the newest. `debug` takes a few steps on a few rows with autograd's
    anomaly detection, measures, and writes neither model nor checkpoint.
    """
    redirect_output()
    stop = StopFlag()
    import torch
    from datasets import Dataset
    from transformers import set_seed

    from pipeline.training.arguments import cast_adapters, save_model
    from pipeline.training.callbacks import HealthCallback, MetricsCallback
    from pipeline.training.contrastive import imported
    from pipeline.training.contrastive_trainer import ContrastiveTrainer
    from pipeline.training.contrastive_validation import ValidationCallback
    from pipeline.training.models import load_base_tokenizer, load_for_training, set_end_of_turn, starting_model
    from pipeline.training.resume import CheckpointCallback
    from pipeline.training.throughput import ThroughputCallback
    from pipeline.training.tracking import track

    run = RunDir.of_logs(logs)
    recipe, _ = run.read_resolved()
    own: Contrastive = recipe.own(stage)
    torch.autograd.set_detect_anomaly(own.detect_anomaly or debug)
    source = starting_model(recipe, run, stage)
    tokenizer = load_base_tokenizer(source, recipe.model)
    set_seed(recipe.seed)  # new adapters begin with random weights
    model = prepared(load_for_training(source, recipe.model))
    set_end_of_turn(model, tokenizer)
    data = dag.dataset_of(recipe, run)
    train, dev = (Dataset.from_file(str(data / f"{name}.arrow")) for name in ("train", "dev"))
    arguments = contrastive_arguments(recipe, run, stage)
    if debug:
        arguments.max_steps, train = DEBUG_STEPS, train.select(range(min(DEBUG_ROWS, len(train))))
    health = HealthCallback(run, stage, recipe.health)
    callbacks = [MetricsCallback(run, stage), health]
    callbacks += [imported(path, f"{stage}.callbacks")() for path in own.callbacks]
    trainer = ContrastiveTrainer(
        own=own, pad=tokenizer.pad_token_id, model=model, args=arguments, train_dataset=train,
        processing_class=tokenizer, callbacks=callbacks,
    )  # fmt: skip
    cast_adapters(trainer.model)
    validation = ValidationCallback(run, stage, own, health, trainer, tokenizer.pad_token_id, dev)
    for each in (validation, ThroughputCallback(trainer, peak_tflops())):
        trainer.add_callback(each)
    if debug:
        trainer.train()
        return
    track(trainer, recipe, run, stage, dag.build(recipe, run)[stage].fingerprint)
    saver = CheckpointCallback(recipe, run, stage, trainer, stop, (health, validation))
    trainer.add_callback(saver)
    if resume:
        saver.found = checkpoint_of(resume)
    saver.train()
    validation.restore_best()
    save_model(trainer, tokenizer, run.model(stage))


def prepared(model: Any) -> Any:
    """A model whose embeddings give gradients where all below its adapters is frozen: checkpointing needs them."""
    if any(not parameter.requires_grad for parameter in model.parameters()):
        model.enable_input_require_grads()
    return model


def checkpoint_of(folder: Path) -> Any:
    """The checkpoint in a folder. Raises UserError when it is not complete."""
    from pipeline.training import checkpoints

    found = checkpoints.read(folder.resolve(), thorough=True)
    if isinstance(found, str):
        raise UserError("not a complete checkpoint", value=found, where=str(folder), do="name another with --resume")
    return found


def contrastive_arguments(recipe: Recipe, run: RunDir, stage: str) -> Any:
    """TrainingArguments from the recipe: its section's options and what other keys of the recipe decide."""
    from transformers import TrainingArguments

    from pipeline.training.arguments import common_arguments

    own: Contrastive = recipe.own(stage)
    fixed = {
        "remove_unused_columns": False,  # the collator takes them
        "label_names": [],
        "gradient_checkpointing_kwargs": {"use_reentrant": False},  # hooks see the layers' outputs with gradients
        "torch_empty_cache_steps": own.empty_cache_steps or None,
    }
    common = common_arguments(recipe, run, stage, own.global_batch_size, own.micro_batch_size)
    return TrainingArguments(**common, **fixed, **recipe.trainer_options(stage))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("logs", type=Path)
    parser.add_argument("stage")
    parser.add_argument("--resume", type=Path, help="a checkpoint's folder, instead of the newest")
    parser.add_argument("--debug", action="store_true", help="a few steps with anomaly detection; writes no model")
    main(**vars(parser.parse_args()))
