"""The `model` section of a recipe: where the weights come from, their format, their adapters."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.settings import Positive, Section, Share


class Tokenizer(Section):
    """A byte-pair tokenizer trained on the training rows."""

    vocab_size: Positive = 2048
    split: Literal["statement", "edge", "word"] = "statement"
    """Where a token must end: after a statement (`.`, `;`, `:`, newline), there and after each edge of a path of
    traces, or after a word."""


class ScratchModel(Section):
    """A model with random weights, made by the preprocess stage, that later stages load as they load a hub model."""

    architecture: Literal["qwen2", "llama", "phi3"] = "qwen2"
    hidden_size: Positive = 128
    intermediate_size: Positive = 512
    num_hidden_layers: Positive = 4
    num_attention_heads: Positive = 4
    num_key_value_heads: Positive = 4
    max_position_embeddings: Positive = 512
    initializer_range: Annotated[float, Field(gt=0)] = 0.08
    """Standard deviation of the random weights; the usual 0.02 is for wide models and learns far slower here."""
    tokenizer: Tokenizer = Tokenizer()


class Lora(Section):
    """Low-rank adapters by PEFT; without this section all weights are trained."""

    r: Positive = 16
    alpha: Positive = 32
    dropout: Share = 0.05
    target_modules: list[str] | Literal["all-linear"] = "all-linear"


class Model(Section):
    """The base model: `base` (hub id or folder) or `scratch`."""

    base: str | None = None
    revision: str | None = None
    """Branch, tag or commit of a hub model; null: main. `prefetch` pins it to a commit."""
    scratch: ScratchModel | None = None
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "bf16"
    """`auto`: bf16 on GPUs that have it (Ampere and later), fp16 on others, fp32 on a CPU; settled as a run starts."""
    tf32: bool | Literal["auto"] = False
    """Products of what stays fp32 in 19 bits; `auto`: on GPUs that have bf16."""
    quantization: Literal["none", "nf4"] = "none"
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "sdpa"
    """`auto`: flash_attention_2 where it is installed and the GPU has bf16, else sdpa."""
    chat_template: str | None = None
    """For a base model whose tokenizer has none: chatml, llama2, llama3, phi3, plain, or a Jinja file."""
    lora: Lora | None = None

    @model_validator(mode="after")
    def _one_origin(self) -> Model:
        if (self.base is None) == (self.scratch is None):
            raise ValueError("give model.base (a hub id or a folder) or model.scratch, not both and not neither")
        if self.quantization != "none" and self.lora is None:
            raise ValueError("model.quantization trains adapters only: add model.lora")
        if self.quantization != "none" and self.scratch is not None:
            raise ValueError("model.quantization needs trained weights: model.scratch has none")
        return self
