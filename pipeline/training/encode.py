"""Prompts and completions to token ids, with loss on the completion only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.errors import UserError

IGNORED = -100
"""Label of a token that carries no loss (torch's cross entropy)."""


def encode(tokenizer: Any, prompts: Sequence[str], completions: Sequence[str], end: int) -> dict[str, list[list[int]]]:
    """`input_ids` and `labels` for SFTTrainer; the loss covers the completion and the end-of-turn token.

    Prompt and completion are tokenized apart, so that the prompt's ids are those seen at inference. `prompts` are
    texts that went through the chat template, hence no special tokens are added.
    """
    prompt_ids = tokenizer(list(prompts), add_special_tokens=False)["input_ids"]
    completion_ids = tokenizer(list(completions), add_special_tokens=False)["input_ids"]
    pairs = list(zip(prompt_ids, completion_ids, strict=True))
    return {
        "input_ids": [[*prompt, *completion, end] for prompt, completion in pairs],
        "labels": [[IGNORED] * len(prompt) + [*completion, end] for prompt, completion in pairs],
    }


def check_lengths(input_ids: Sequence[Sequence[int]], limit: int | None, where: str) -> None:
    """Raise UserError when a row is longer than `limit` tokens: cut rows would lose their answer silently."""
    longest = max((len(ids) for ids in input_ids), default=0)
    if limit is not None and longest > limit:
        over = sum(len(ids) > limit for ids in input_ids)
        raise UserError(
            f"{over} of {len(input_ids)} rows are longer than the limit of {limit} tokens; the longest has",
            value=longest, where=where, do="raise the limit or lower data.max_variables",
        )  # fmt: skip
