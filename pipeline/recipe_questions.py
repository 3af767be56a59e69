"""Settings of tasks whose rows are published questions: where rows come from, their wording, what right answers pay."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from pipeline.settings import Section

MathTask = Literal["gsm8k", "math", "metamathqa", "arithmetic"]
TestedTask = Literal["humaneval", "mbpp"]
InstructTask = Literal["codealpaca", "magicoder"]
QuestionTask = Literal[MathTask, TestedTask, InstructTask]
TemplateName = Literal["plain", "math_cot", "math_hash", "math_answer", "code_block"]

SOURCES: dict[str, str] = {
    "corr2cause": "generated",
    "arithmetic": "generated",
    "gsm8k": "openai/gsm8k:main",
    "math": "DigitalLearningGmbH/MATH-lighteval",
    "metamathqa": "meta-math/MetaMathQA",
    "codealpaca": "sahil2801/CodeAlpaca-20k",
    "magicoder": "ise-uiuc/Magicoder-OSS-Instruct-75K",
    "humaneval": "openai/openai_humaneval",
    "mbpp": "google-research-datasets/mbpp:full",
}
"""Where rows come from unless a recipe says: made here, or a hub id, after a colon its configuration."""

GRADED: dict[str, str] = {
    **dict.fromkeys(get_args(MathTask), "math_correctness"),
    **dict.fromkeys(get_args(TestedTask), "code_execution"),
}
"""The reward by the rightness of answers, of each task that has one."""


class Part(Section):
    """Where the rows of one part of a run come from, when not from `task` and `data.source`."""

    task: QuestionTask | None = None
    source: str | None = None
    """A file or folder in the published format, or a hub id; null: that of the recipe for its task, else the task's."""
    revision: str | None = None
    """Branch, tag or commit of a hub data set; null: main. `prefetch` pins it to a commit."""
    split: str | None = None
    """null: train for training stages and dev, test for test (where the set has no other: the one it has)."""
    template: TemplateName | None = None


Amount = Annotated[float, Field(allow_inf_nan=False)]


class RewardPart(Section):
    """One part of a weighted reward."""

    type: Literal["math_correctness", "code_execution", "format", "length_penalty"]
    """`format`: the completion words its answer as the template asks. `length_penalty`: its length, as a share of
    max_completion_length, taken off."""
    weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    positive: Amount = 1.0
    """For a right answer, or all tests passed."""
    negative: Amount = 0.0
    """For any other, one that cannot be read included."""
    partial_credit: bool = False
    """In between, by the share of tests passed, or of the parts of an answer (a tuple, a set) that are right."""

    @model_validator(mode="after")
    def _pays(self) -> RewardPart:
        if self.positive <= self.negative:
            raise ValueError(
                f"positive {self.positive} is not above negative {self.negative}: nothing would be learned"
            )
        return self


class Reward(Section):
    """The GRPO reward of tasks other than Corr2Cause."""

    type: Literal["math_correctness", "code_execution", "weighted"]
    positive: Amount = 1.0
    negative: Amount = 0.0
    partial_credit: bool = False
    parts: list[RewardPart] = Field(default_factory=list)
    """With type `weighted`: what is summed."""

    @model_validator(mode="after")
    def _parts(self) -> Reward:
        if (self.type == "weighted") != bool(self.parts):
            raise ValueError("reward.type weighted and reward.parts (what is summed) go together")
        types = [part.type for part in self.parts]
        if len(set(types)) < len(types):
            raise ValueError(f"a part of the reward stands twice: {', '.join(types)}")
        if self.parts and not any(part.weight for part in self.parts):
            raise ValueError("no part of the reward has a weight: nothing would be learned")
        self.summed()  # the same check of positive and negative
        return self

    def summed(self) -> list[RewardPart]:
        """The parts of the sum; of a reward that is not weighted, itself."""
        if self.type == "weighted":
            return self.parts
        return [
            RewardPart(
                type=self.type, positive=self.positive, negative=self.negative, partial_credit=self.partial_credit
            )
        ]
