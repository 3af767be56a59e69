"""Proximal policy optimization: a value model on the policy's hidden states, GAE, clipped policy and value updates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from trl import GRPOTrainer

from pipeline.recipe_rl import Ppo
from pipeline.training.contrastive import captured

VALUES = "value_head.safetensors"


class ValueHead(nn.Module):  # type: ignore[misc]
    """The value model: one number for each state, two layers above the hidden states of the policy's last layer.

    Values begin with zero. No gradient goes further down: what the policy knows it learns from advantages alone. Its
    weights are float32 and states are normalized first, so that the learning rate does not depend on the model.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.inner = nn.Linear(hidden_size, hidden_size, dtype=torch.float32)
        self.out = nn.Linear(hidden_size, 1, dtype=torch.float32)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, states: Tensor) -> Tensor:
        """(rows, tokens) values of (rows, tokens, hidden size) states."""
        with torch.autocast(states.device.type, enabled=False):
            normal = nn.functional.layer_norm(states.detach().float(), states.shape[-1:])
            inner = nn.functional.gelu(self.inner(normal.to(self.inner.weight.dtype)))
            return self.out(inner).squeeze(-1).float()


def token_rewards(scores: Tensor, log_ratio: Tensor, mask: Tensor, kl_coefficient: float) -> Tensor:
    """(rows, tokens) rewards: the score (rows,) at a completion's last token, and at each the penalty for straying.

    `log_ratio` is log policy - log reference of each token, whose mean is their KL divergence (Ziegler et al. 2019,
    arXiv 1909.08593, section 2, equation 2).
    """
    rewards = -kl_coefficient * log_ratio * mask
    last = (mask.sum(1) - 1).clamp(min=0).long().unsqueeze(1)
    return rewards.scatter_add(1, last, (scores * (mask.sum(1) > 0)).unsqueeze(1))


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> Tensor:
    """(rows, tokens) generalized advantage estimates (Schulman et al. 2015, arXiv 1506.02438, section 3, equation 16).

    A_t = sum over l of (gamma lam)^l delta_{t+l}, delta_t = r_t + gamma V(s_{t+1}) - V(s_t). After the last token of a
    completion (`mask` is 1 up to it) comes nothing, with the value 0.
    """
    advantages, following, value_after = torch.zeros_like(values), torch.zeros_like(values[:, 0]), 0.0
    values = values * mask
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * value_after - values[:, t]
        following = (delta + gamma * lam * following) * mask[:, t]
        advantages[:, t], value_after = following, values[:, t]
    return advantages


def clipped_value_loss(values: Tensor, old: Tensor, returns: Tensor, clip: float) -> Tensor:
    """(rows, tokens) squared errors, the larger of the value's and that of the value kept within `clip` of the old one.

    The policy's clipping (Schulman et al. 2017, arXiv 1707.06347, section 3, equation 7) for the value loss of section
    5, equation 9, as its authors' code has it (Engstrom et al. 2020, arXiv 2005.12729, section 3).
    """
    kept = old + (values - old).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns) ** 2, (kept - returns) ** 2)


class PpoTrainer(GRPOTrainer):  # type: ignore[misc]
    """PPO (Schulman et al. 2017, arXiv 1707.06347) by what TRL's GRPOTrainer has: rollouts, rewards, clipped ratios.

    Advantages are those of each token by GAE instead of the group's, the KL penalty is in the rewards, and the value
    loss is added to the clipped objective (section 3, equation 7), with an entropy bonus where `entropy_coef` asks for
    one: together equation 9. The value head is a part of the model while it trains and leaves it before it is saved.
    """

    def __init__(self, own: Ppo, model: Any, **arguments: Any) -> None:
        """`own` are the stage's settings, the others GRPOTrainer's; its `beta` must be `own.kl_coefficient`."""
        self.own = own
        model.value_head = ValueHead(model.config.get_text_config().hidden_size).to(model.device)
        super().__init__(model=model, **arguments)
        self._scores = torch.empty(0)

    def create_optimizer(self, model: Any = None) -> Any:
        """The usual optimizer, with a group of its own for the value head, whose learning rate is another."""
        made = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if made:
            head = list((self.model if model is None else model).value_head.parameters())
            ours = {id(each) for each in head}
            for group in optimizer.param_groups:
                group["params"] = [each for each in group["params"] if id(each) not in ours]
            optimizer.add_param_group({"params": head, "lr": self.own.value_learning_rate, "weight_decay": 0.0})
        return optimizer

    def _calculate_rewards(self, *args: Any) -> Tensor:
        """(completions of all processes, functions) rewards; their weighted sums are kept, NaN of what has none."""
        parts = super()._calculate_rewards(*args)
        self._scores = (parts * self.reward_weights.to(parts.device)).nansum(1)
        self._scores[parts.isnan().all(1)] = torch.nan
        return parts

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        """TRL's rollout, with the advantages, returns, values and log-probabilities that PPO goes by for it."""
        self.beta = self.own.kl_coefficient  # so that TRL asks the reference
        made = super()._generate_and_score_completions(inputs)
        self.beta = 0.0  # the penalty is in the rewards, not once more in the loss
        mask = made["completion_mask"].float()
        rows, length = mask.shape
        own = slice(self.accelerator.process_index * rows, (self.accelerator.process_index + 1) * rows)
        scores = self._scores[own]
        with torch.no_grad(), captured(self.model, -1) as states:
            logps, _, _ = self._get_per_token_logps_and_entropies(
                self.model, torch.cat([made["prompt_ids"], made["completion_ids"]], dim=1),
                torch.cat([made["prompt_mask"], made["completion_mask"]], dim=1), length,
                batch_size=self.args.per_device_train_batch_size,
            )  # fmt: skip
            values = self._values(torch.cat(states), length) * mask
        log_ratio = (logps - made.pop("ref_per_token_logps", logps)) * mask
        rewards = token_rewards(scores.nan_to_num(), log_ratio, mask, self.own.kl_coefficient)
        advantages = gae(rewards, values, mask, self.own.gamma, self.own.gae_lambda)
        advantages = advantages * ~scores.isnan().unsqueeze(1)  # nothing is learned from what cannot be graded
        self._log_rollout(log_ratio, values, advantages, mask)
        return {**made, "advantages": self._whitened(advantages, mask), "returns": advantages + values,
                "old_values": values, "old_per_token_logps": logps}  # fmt: skip

    def _values(self, states: Tensor, length: int) -> Tensor:
        """(rows, length) values of the states before each token of completions that are the last `length` of all."""
        return self.accelerator.unwrap_model(self.model).value_head(states[:, -length - 1 : -1])

    def _whitened(self, advantages: Tensor, mask: Tensor) -> Tensor:
        """Advantages with mean 0 and deviation 1 over all tokens of all processes."""
        sums = torch.stack([(advantages * mask).sum(), (advantages**2 * mask).sum(), mask.sum()])
        total, squares, count = self.accelerator.reduce(sums, reduction="sum")
        mean = total / count.clamp(min=1)
        deviation = (squares / count.clamp(min=1) - mean**2).clamp(min=0).sqrt()
        return (advantages - mean) / (deviation + 1e-8) * mask

    def _log_rollout(self, log_ratio: Tensor, values: Tensor, advantages: Tensor, mask: Tensor) -> None:
        """Means over tokens: KL to the reference (Schulman's estimator that is never negative), values, returns."""
        parts = {"kl": (-log_ratio).exp() + log_ratio - 1, "value": values, "return": values + advantages}
        for name, part in parts.items():
            sums = self.accelerator.reduce(torch.stack([(part * mask).sum(), mask.sum()]), reduction="sum")
            self._metrics["train"][name].append((sums[0] / sums[1].clamp(min=1)).item())

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """The clipped objective by TRL, and the clipped value loss: both means over the tokens of an optimizer step."""
        with captured(model, -1) as states:
            loss = super()._compute_loss(model, inputs)
        mask = inputs["completion_mask"]
        values = self._values(states[0], mask.shape[1])
        errors = clipped_value_loss(values, inputs["old_values"], inputs["returns"], self.own.value_clip) * mask
        share = self.current_gradient_accumulation_steps / self.args.steps_per_generation
        tokens = inputs["num_items_in_batch"].clamp(min=1) / self.accelerator.num_processes * share
        mean = self.accelerator.reduce(torch.stack([errors.detach().sum(), mask.sum()]), reduction="sum")
        self._metrics["train"]["value_loss"].append((mean[0] / mean[1].clamp(min=1)).item())
        return loss + errors.sum() / tokens  # the value model shares no weight: it needs no coefficient


class ValueKeeper:
    """The value head in a checkpoint, wherever the model's own file has no place for it (an adapter's)."""

    def __init__(self, trainer: PpoTrainer) -> None:
        self.trainer = trainer

    @property
    def model(self) -> Any:
        """The model that has the head."""
        return self.trainer.accelerator.unwrap_model(self.trainer.model)

    def save(self, folder: Path) -> None:
        """Write the head into a checkpoint's folder."""
        save_file(self.model.value_head.state_dict(), folder / VALUES)

    def load(self, folder: Path) -> None:
        """Take the head from a checkpoint's folder."""
        self.model.value_head.load_state_dict(load_file(folder / VALUES))

    def drop(self) -> None:
        """Take the head off the model, which is then what it was before."""
        del self.model.value_head
