"""One optimizer step of the real trainer by plain gradient descent: the difference of the weights is the gradient.

Arguments: model folder, rows (Arrow), settings (JSON), where the weights go. Started by torchrun too.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from pipeline.recipe_contrastive import Contrastive


def step(model: Any, rows: Any, settings: dict[str, Any], micro: int, accumulation: int, checkpointing: bool) -> Any:
    """The trainer after one step of learning rate 1 over the first rows, in their order."""
    from torch.utils.data import SequentialSampler
    from transformers import TrainingArguments

    from pipeline.training.contrastive_trainer import ContrastiveTrainer

    class InOrder(ContrastiveTrainer):
        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return SequentialSampler(train_dataset)

    arguments = TrainingArguments(
        output_dir="unused", max_steps=1, learning_rate=1.0, lr_scheduler_type="constant", optim="sgd", max_grad_norm=0,
        per_device_train_batch_size=micro, gradient_accumulation_steps=accumulation, use_cpu=True, report_to="none",
        save_strategy="no", remove_unused_columns=False, label_names=[], disable_tqdm=True,
        gradient_checkpointing=checkpointing, gradient_checkpointing_kwargs={"use_reentrant": False},
    )  # fmt: skip
    own = Contrastive.model_validate({"global_batch_size": 1, **settings})
    trainer = InOrder(own=own, pad=0, model=model, args=arguments, train_dataset=rows)
    trainer.train()
    return trainer


def main(model: Path, rows: Path, settings: str, target: Path) -> None:
    """Take the step on one of two processes, and save the weights from the first."""
    from datasets import Dataset
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    trainer = step(AutoModelForCausalLM.from_pretrained(model), Dataset.from_file(str(rows)), json.loads(settings),
                   micro=2, accumulation=2, checkpointing=False)  # fmt: skip
    if trainer.accelerator.is_main_process:
        save_file({name: value.detach() for name, value in trainer.model.named_parameters()}, target)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
