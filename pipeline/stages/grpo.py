"""Group relative policy optimization with TRL's GRPOTrainer: rewards from the task's scorer, a guard on dev rows.

python -m pipeline.stages.grpo logs/tiny grpo
"""

from __future__ import annotations

import sys
from pathlib import Path

from pipeline.training.ranks import redirect_output
from pipeline.training.stop import StopFlag


def main(logs: Path, stage: str) -> None:
    """Train the stage's model and save the best one by dev F1, tokenizer beside it, into the run's model folder."""
    redirect_output()
    stop = StopFlag()
    from trl import GRPOTrainer

    from pipeline.stages import rollouts

    rollout = rollouts.prepared(logs, stage)
    trainer = GRPOTrainer(**rollout.arguments)
    rollouts.train(rollout, trainer, stop)
    rollouts.save(rollout, trainer)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
