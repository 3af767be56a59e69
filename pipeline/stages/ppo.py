"""Proximal policy optimization: TRL's GRPO rollouts, a value model, advantages by GAE (pipeline/training/ppo.py).

python -m pipeline.stages.ppo logs/tiny-math-ppo ppo
"""

from __future__ import annotations

from pathlib import Path

from pipeline.run import RunDir
from pipeline.training.entry import run_stage
from pipeline.training.ranks import redirect_output
from pipeline.training.stop import StopFlag


def main(logs: Path, stage: str) -> None:
    """Train the stage's model and save the best one by dev rows, tokenizer beside it, into the run's model folder."""
    redirect_output()
    stop = StopFlag()
    from pipeline.stages import rollouts
    from pipeline.training.ppo import PpoTrainer, ValueKeeper

    recipe, _ = RunDir.of_logs(logs).read_resolved()
    own = recipe.own(stage)
    # the value model works beside the pass through the policy: torch would think it unused
    rollout = rollouts.prepared(logs, stage, beta=own.kl_coefficient, ddp_find_unused_parameters=False)
    trainer = PpoTrainer(own, **rollout.arguments)
    keeper = ValueKeeper(trainer)
    rollouts.train(rollout, trainer, stop, [keeper])
    keeper.drop()
    rollouts.save(rollout, trainer)


if __name__ == "__main__":
    run_stage(main)
