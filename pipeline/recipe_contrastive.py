"""Settings of the stages against injected instructions: triplets, contrastive, robustness."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.recipe_stage import Checkpoints, StageSettings
from pipeline.settings import Count, Positive, Section, Share

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
IMPORT_PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
"""`package.module:Name`, as losses and callbacks of the user's own are given."""
LOSSES = ("causal_contrastive", "info_nce")
Part = Literal["benign", "counterfactual", "injection"]
PARTS: tuple[Part, ...] = ("benign", "counterfactual", "injection")


class GeneratedTriplets(Section):
    """How many triplets are made when `data.source` is `generated`, and of what."""

    train: Positive = 4000
    dev: Positive = 200
    test: Positive = 600
    words: Annotated[int, Field(ge=20, le=200)] = 60
    """Different words that the benign tasks use."""
    longest: Annotated[int, Field(ge=2, le=8)] = 4
    """Most words of a benign input."""


class Triplets(StageSettings):
    """Own keys of a `triplets` section: which rows go where, and how long they may be. `data.source` says where from:
    `generated`, a JSONL file (split here by benign template), or a folder with train.jsonl and val.jsonl."""

    makes = "dataset"

    validation: str | None = None
    """A JSONL file of rows to validate on, where `data.source` is one file; null takes a share of that."""
    test: str | None = None
    """A JSONL file of rows for the robustness stage; null takes the validation rows and all held-out rows."""
    held_out: list[str] = Field(default_factory=list)
    """Attack types and techniques that no training or validation row has: the robustness stage alone sees them."""
    validation_share: Share = 0.1
    """Share of the benign templates of a source of one file that is kept out of training."""
    near_duplicate: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Jaccard similarity of two attacks' letters, five at a time, from which they count as one."""
    drop_near_duplicates: bool = True
    """Leave rows out of validation and test that are near-duplicates of training rows, whoever made the split."""
    max_length: Positive = 2048
    """Most tokens of prompt and completion; the middle of the context, then of the user's text, gives way."""
    generated: GeneratedTriplets = GeneratedTriplets()


class Representation(Section):
    """Which hidden states stand for a prompt."""

    pooling: Literal["last", "mean"] = "last"
    """`last`: of the token after which the answer begins; `mean`: over all prompt tokens."""
    layer: int = -1
    """Number of the layer whose output it is, 0 the embeddings; negative counts from the end."""


class Loss(Section):
    """L = lambda_causal * L_causal + lambda_spurious * L_spurious + lambda_task * L_task."""

    type: str = "causal_contrastive"
    """`causal_contrastive` (pairs of one triplet), `info_nce` (over the whole batch) or `package.module:Class`."""
    lambda_causal: Weight = 1.0
    lambda_spurious: Weight = 1.0
    lambda_task: Weight = 1.0
    temperature: Annotated[float, Field(gt=0)] = 0.07
    task_inputs: list[Part] = Field(default_factory=lambda: list[Part](["benign"]))
    """Inputs whose expected outputs are learned; that of an injection is its safe answer."""

    @field_validator("type")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in LOSSES and not IMPORT_PATH.fullmatch(value):
            raise ValueError(f"a loss is one of {', '.join(LOSSES)}, or package.module:Class of your own")
        return value

    @model_validator(mode="after")
    def _learns(self) -> Loss:
        if not self.lambda_causal and not self.lambda_spurious and not self.lambda_task:
            raise ValueError("all three lambdas are 0: nothing would be learned")
        if self.lambda_task and not self.task_inputs:
            raise ValueError("lambda_task weighs the loss of task_inputs: name at least one, or set lambda_task to 0")
        return self

    @property
    def contrasts(self) -> bool:
        """Whether representations take part in the loss; a control by the task loss alone needs none."""
        return self.type not in LOSSES or bool(self.lambda_causal or self.lambda_spurious)


class Validation(Section):
    """How often and on how many rows a contrastive stage measures itself."""

    every_steps: Positive = 200
    rows: Positive = 256
    batch_size: Positive = 8


class EarlyStopping(Section):
    """When training ends because it gets no better; the best weights are kept whether or not this section is there."""

    metric: Literal["causal_stability", "spurious_separation", "causal_discrimination", "task_loss", "loss"] = (
        "causal_stability"
    )
    patience: Positive = 5
    """Measurements in a row without a gain."""
    min_delta: Annotated[float, Field(ge=0)] = 0.001
    """Smallest gain that counts."""
    stops: bool = True
    """false keeps the best weights by `metric` and trains to the end."""
    keeps_best: bool = True
    """false saves the last weights."""


class Contrastive(StageSettings):
    """Own keys of a `contrastive` section; every other key is an option of transformers' TrainingArguments."""

    makes = "model"

    global_batch_size: Positive
    """Triplets in one optimizer step."""
    micro_batch_size: Positive = 1
    forward: Literal["batched", "separate"] = "batched"
    """The three inputs of a triplet in one pass through the model, or one after the other, which needs less memory."""
    loss: Loss = Loss()
    representation: Representation = Representation()
    validation: Validation = Validation()
    early_stopping: EarlyStopping = EarlyStopping()
    callbacks: list[Annotated[str, Field(pattern=IMPORT_PATH.pattern)]] = Field(default_factory=list)
    """transformers.TrainerCallback classes of your own, as `package.module:Class`, made without arguments."""
    empty_cache_steps: Count = 0
    """Give unused GPU memory back every so many steps; 0 never does."""
    detect_anomaly: bool = False
    """Let autograd name the operation whose gradient is not finite; slow."""
    checkpoint: Checkpoints = Checkpoints()


class Judge(Section):
    """A server with OpenAI's chat completions interface that says whether an answer follows an injection."""

    url: Annotated[str, Field(pattern=r"^https?://.+[^/]$")]
    """Up to and without `/chat/completions`, such as http://127.0.0.1:8000/v1."""
    model: str
    key_variable: str | None = None
    """Environment variable that holds the key; null sends none."""
    timeout: Positive = 60
    """Seconds for one answer."""


class Robustness(StageSettings):
    """How models are attacked and how their answers are counted."""

    makes = "robustness"

    max_new_tokens: Positive = 128
    batch_size: Positive = 32
    rows: Positive | None = None
    """Most test rows; null takes all there are."""
    bootstrap: Positive = 2000
    """Resamples of whole templates for the intervals."""
    representation: Representation = Representation()
    """Which hidden states causal stability and spurious separation are measured on, alike for all models."""
    judge: Judge | None = None
