"""The `rewards` section of a `grpo` section: what each part of the reward is worth, and what is known to go wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, model_validator

from pipeline.settings import Count, Section

Worth = Annotated[float, Field(allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Rewards(Section):
    """The parts of the GRPO reward and their weights in its sum; a part that weighs 0 is logged all the same."""

    correct_reward: Worth = 1.0
    incorrect_reward: Worth = -1.0
    """Also for an answer that cannot be parsed; those are counted apart."""
    class_balanced: Weight = 0.0
    """Times +1 for a right answer and -1 for another, both times what makes the valid rows of the stage and the invalid
    ones weigh alike in sum, whatever their numbers."""
    true_steps: Weight = 0.5
    """Times the share of reasoning steps, up to the first false one, that the causal engine finds true."""
    step_credit: Weight = 0.0
    """Times how much truer a step is than the batch's steps on average, in standard deviations: added to the advantage
    of that step's own tokens, up to the first false one, so that a false statement is blamed and not the whole text."""
    format: Weight = 0.0
    """For a completion that ends in `Therefore: Yes` or `Therefore: No` and says this once."""
    reasoning_length_bonus: Weight = 0.0
    """For each reasoning step, up to max_bonus_steps. A model can earn it by writing more, true or not."""
    max_bonus_steps: Count = 10
    length_penalty: Weight = 0.0
    """Taken off a completion of max_completion_length tokens, in proportion off a shorter one (Yu et al. 2025, DAPO,
    arXiv 2503.14476, soft overlong punishment)."""
    length_penalty_from: Count = 0
    """Tokens that are free of it."""

    @model_validator(mode="after")
    def _pays(self) -> Rewards:
        if self.correct_reward < self.incorrect_reward:
            raise ValueError(
                f"correct_reward {self.correct_reward} is below incorrect_reward {self.incorrect_reward}: "
                "wrong answers would be learned"
            )
        if self.correct_reward == self.incorrect_reward and not any(list(self.weights().values())[1:]):
            raise ValueError("no part of the reward tells completions apart: give one of them a weight")
        return self

    def weights(self) -> dict[str, float]:
        """Parts by the name under which they are logged, with their weights; the answer's worth is in its values."""
        return {
            "answer": 1.0,
            "class_balanced": self.class_balanced,
            "true_steps": self.true_steps,
            "format": self.format,
            "reasoning_length": self.reasoning_length_bonus,
            "length_penalty": self.length_penalty,
        }

    def warnings(self, balance: float | None, options: Mapping[str, Any]) -> list[str]:
        """What a recipe may ask for although it is known to go wrong, given data.balance and the trainer's options."""
        told = []
        if self.reasoning_length_bonus:
            most, right = (
                self.reasoning_length_bonus * self.max_bonus_steps,
                self.correct_reward - self.incorrect_reward,
            )
            told.append(
                f"reasoning_length_bonus can be hacked: it pays up to {most:g} for steps that need not be true (a "
                f"right answer pays {right:g} more than a wrong one); true_steps pays for true ones alone"
            )
        if self.class_balanced and options.get("scale_rewards", "group") == "group":
            told.append(
                "class_balanced is undone by scale_rewards group, which divides by the spread of each prompt's "
                "rewards: use scale_rewards: none or batch"
            )
        if balance is None and not self.class_balanced and not self.true_steps:
            told.append(
                "answers alone are paid and rows are not balanced: this was measured to end in always No while the "
                "mean reward rises; use data.balance, true_steps or class_balanced"
            )
        return told
