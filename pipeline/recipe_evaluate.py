"""The `evaluate` section of a recipe: how models are asked, which test sets, how answers are counted."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.recipe_stage import StageSettings
from pipeline.settings import Positive

PUBLISHED_SETS = ("released-v2", "released-v1", "corrected", "paraphrased", "refactorized", "relabelled")
"""The published test and what is made of it: see docs/evaluation.md."""
MOST_VARIABLES = 24
_VARIABLES = re.compile(r"variables-(\d+)")


def variables_of(name: str) -> int | None:
    """The number of variables of a test set called `variables-N`, N from 2 to 24; None for other names."""
    found = _VARIABLES.fullmatch(name)
    return int(found[1]) if found and 2 <= int(found[1]) <= MOST_VARIABLES else None


YES_NO_ONLY = ("mode", "engine", "answer_prefix", "stop_at_answer", "sets", "set_rows", "set_variables")
"""Keys of an `evaluate` section that ask for what only corr2cause has."""


class Evaluate(StageSettings):
    """How models are asked and how their answers are counted."""

    makes = "results"

    mode: Literal["generate", "answer"] = "generate"
    """`generate` lets the model write; `answer` compares the probabilities of Yes and No, without any reasoning."""
    answer_prefix: str = "Therefore: "
    """With mode `answer`: what a completion says before Yes or No."""
    engine: Literal["transformers", "vllm"] = "transformers"
    """What generates; vllm has an environment of its own (requirements-vllm.txt)."""
    max_new_tokens: Positive = 512
    batch_size: Positive = 32
    temperature: Annotated[float, Field(ge=0)] = 0.0
    """0 is greedy."""
    samples: Positive = 1
    """Completions for each row: above 1 gives pass@k and maj@k, and the first of them is the one that is counted."""
    stop_at_answer: bool = True
    """End a completion that has stated its answer (`Therefore: Yes`) and goes on all the same."""
    sets: list[str] = Field(default_factory=list)
    """Further test sets: published ones by name, `variables-N` for new rows on N variables."""
    set_rows: Positive = 500
    """Rows of each set `variables-N`."""
    set_variables: Positive | None = None
    """Most variables of the rows of published sets; null: all rows."""
    bootstrap: Positive = 2000
    """Resamples of whole premises for the intervals."""

    @field_validator("sets")
    @classmethod
    def _sets(cls, value: list[str]) -> list[str]:
        for name in value:
            if name not in PUBLISHED_SETS and variables_of(name) is None:
                known = ", ".join(PUBLISHED_SETS)
                raise ValueError(f"no test set is called {name!r}: there are {known} and variables-2 to variables-24")
        if len(set(value)) < len(value):
            raise ValueError("a test set stands twice")
        return value

    @model_validator(mode="after")
    def _together(self) -> Evaluate:
        if self.samples > 1 and self.temperature == 0:
            raise ValueError("samples above 1 are all the same without a temperature: set temperature")
        if self.mode == "answer" and (self.samples > 1 or self.engine != "transformers"):
            raise ValueError("mode answer takes no samples and runs on the engine transformers")
        return self

    def asking(self, task: str) -> dict[str, int | float | str | bool]:
        """The settings that decide on what a model answers to rows of a task."""
        others = set() if task == "corr2cause" else set(YES_NO_ONLY)
        return self.model_dump(exclude={"bootstrap", "sets", "set_rows", "set_variables", *others})
