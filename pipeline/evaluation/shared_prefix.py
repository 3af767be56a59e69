"""Prompts that begin alike: what they share goes through the model once, and its KV cache serves all of them."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any

Tokens = tuple[int, ...]
ALIKE = 0.75
"""Share of the longer of two prompts that must be common for them to be read together."""
WORTH = 0.75
"""Share of a batch's tokens above which reading what is shared apart is not worth the second pass."""


def common_length(texts: Sequence[Tokens] | Sequence[str]) -> int:
    """How many tokens or characters all texts begin with; at least one remains of each, to predict from."""
    low: Tokens | str = min(texts)
    high: Tokens | str = max(texts)  # whatever these two share stands in all between them
    most = min(map(len, texts)) - 1
    return next((place for place in range(most) if low[place] != high[place]), most)


def split(texts: Sequence[Tokens]) -> tuple[list[Tokens], list[Tokens]] | None:
    """(what each text shares with those like it, the rest of each, never empty); None where that saves too little."""
    groups: list[list[int]] = []
    for place in sorted(range(len(texts)), key=texts.__getitem__):
        first, text = texts[groups[-1][0]] if groups else (), texts[place]
        if first and common_length([first, text]) >= ALIKE * max(len(first), len(text)):
            groups[-1].append(place)
        else:
            groups.append([place])
    shared = {place: common_length([texts[each] for each in group]) for group in groups for place in group}
    lengths = [shared[place] for place in range(len(texts))]
    starts = [text[:length] for text, length in zip(texts, lengths, strict=True)]
    rests = [text[length:] for text, length in zip(texts, lengths, strict=True)]
    tokens = len(groups) * max(lengths) + len(texts) * max(map(len, rests))
    return (starts, rests) if tokens <= WORTH * len(texts) * max(map(len, texts)) else None


def takes_a_start(model: Any) -> bool:
    """Whether a model, adapters or not, can generate from a cache that was made before.

    It must be told where its tokens stand, as padding between them moves them else; one whose generation settings ask
    for a cache of another kind takes none.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    positioned = "position_ids" in inspect.signature(type(base).forward).parameters
    return positioned and getattr(base.generation_config, "cache_implementation", None) is None


def read(model: Any, starts: Sequence[Tokens]) -> tuple[Any, Any]:
    """(KV cache, attention mask (starts, tokens)) of texts with which prompts begin, padded on the left."""
    import torch

    longest = max(1, *map(len, starts))  # prompts that share nothing get one masked token
    ids = torch.tensor([[0] * (longest - len(text)) + list(text) for text in starts], device=model.device)
    mask = torch.tensor([[0] * (longest - len(text)) + [1] * len(text) for text in starts], device=model.device)
    found = model(input_ids=ids, attention_mask=mask, position_ids=positions(mask), use_cache=True, logits_to_keep=1)
    return found.past_key_values, mask


def positions(mask: Any) -> Any:
    """Where the tokens of a mask (rows, tokens) stand, padding left out."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


def lines(cache: Any, mask: Any, places: Sequence[int]) -> tuple[Any, Any]:
    """A copy of a cache and its mask with the line of a start for each of `places`: the model writes into it."""
    import torch

    chosen = copy.copy(cache)
    chosen.layers = [copy.copy(layer) for layer in cache.layers]  # selecting makes new tensors, so none is shared
    indices = torch.tensor(list(places), device=mask.device)
    chosen.batch_select_indices(indices)
    return chosen, mask[indices]


def keeps_all(cache: Any, tokens: int) -> bool:
    """Whether a cache holds so many tokens and more: one of a sliding window, or of a recurrent model, may not."""
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    kinds = (DynamicLayer, DynamicSlidingWindowLayer)
    return all(
        type(layer) in kinds and tokens < getattr(layer, "sliding_window", float("inf")) for layer in cache.layers
    )
