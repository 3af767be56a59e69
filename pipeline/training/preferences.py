"""DPO's trainer on token ids, and what it is to raise: the margins of implicit rewards on pairs that are held out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from trl import DPOTrainer


class PreferenceTrainer(DPOTrainer):  # type: ignore[misc]
    """TRL's DPOTrainer for rows of `prompt_ids`, `chosen_ids`, `rejected_ids`: nothing is tokenized once more.

    The reference is the model that the stage begins with: a frozen copy of its adapter where it has one (a new one's
    copy does nothing, as if it were disabled), else of the whole model.
    """

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset

    def log_probabilities(self, rows: Sequence[dict[str, Any]]) -> Tensor:
        """(rows, 2): log-probabilities of the chosen and of the rejected completion under the model as it is."""
        model = self.accelerator.unwrap_model(self.model)
        was_training = model.training
        model.eval()
        size, found = self.args.per_device_train_batch_size, [torch.empty(0, 2)]
        with torch.no_grad(), self.accelerator.autocast():
            for first in range(0, len(rows), size):
                batch = self._prepare_inputs(self.data_collator(list(rows[first : first + size])))
                labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
                inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
                tokens = model(**inputs, labels=labels, use_cache=False, fused_lm_head=True).log_probs
                found.append(torch.stack(tokens.sum(1).chunk(2), dim=1).float().cpu())
        model.train(was_training)
        return torch.cat(found)


def preference_values(now: Tensor, reference: Tensor, beta: float) -> dict[str, float]:
    """What DPO is to raise, of log-probabilities (pairs, 2) under the model and under the reference; nothing of none.

    The margin is that of the implicit rewards, beta times the log-ratio of model and reference (Rafailov et al. 2023,
    section 4); accuracy is the share of pairs whose margin is above zero, one of zero counts half.
    `chosen_likelier` is the share of pairs whose chosen completion the model itself finds likelier.
    """
    if not len(now):
        return {}
    rewards = beta * (now - reference)
    margins = rewards[:, 0] - rewards[:, 1]
    right = (margins > 0).float() + 0.5 * (margins == 0).float()
    return {
        "preference_accuracy": right.mean().item(),
        "reward_margin": margins.mean().item(),
        "chosen_likelier": (now[:, 0] > now[:, 1]).float().mean().item(),
    }
