"""Group relative policy optimization with TRL's GRPOTrainer: rewards from the task's scorer, a guard on dev rows.

python -m pipeline.stages.grpo logs/tiny grpo
"""

from __future__ import annotations

from pathlib import Path

from pipeline.training.entry import run_stage
from pipeline.training.ranks import redirect_output
from pipeline.training.stop import StopFlag


def main(logs: Path, stage: str) -> None:
    """Train the stage's model and save the best one by dev F1, tokenizer beside it, into the run's model folder."""
    redirect_output()
    stop = StopFlag()
    from pipeline.stages import rollouts

    rollout = rollouts.prepared(logs, stage)
    trainer = rollouts.grpo_trainer(rollout)
    rollouts.train(rollout, trainer, stop)
    rollouts.save(rollout, trainer)


if __name__ == "__main__":
    run_stage(main)
