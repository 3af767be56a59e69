"""Prompts that begin alike: what they share goes through the model once, and its KV cache serves all of them."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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


def takes_a_start(model: Any, tokens: int) -> bool:
    """Whether a model, adapters or not, can generate up to so many tokens from a cache that was made before.

    It must be told where its tokens stand, as padding between them moves them else. One whose generation settings ask
    for a cache of another kind takes none; that of a recurrent model, or of a short window, does not keep all tokens.
    """
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    positioned = "position_ids" in inspect.signature(type(base).forward).parameters
    if not positioned or getattr(base.generation_config, "cache_implementation", None) is not None:
        return False
    kinds = (DynamicLayer, DynamicSlidingWindowLayer)
    layers = DynamicCache(config=base.config).layers
    return all(type(layer) in kinds and tokens < getattr(layer, "sliding_window", float("inf")) for layer in layers)


@dataclass(frozen=True)
class Started:
    """Texts with which prompts begin, after they went through a model."""

    cache: Any
    mask: Any
    """(texts, tokens): 0 where the cache holds padding, on the left."""
    place_of: Mapping[Tokens, int]

    def lines(self, starts: Sequence[Tokens]) -> tuple[Any, Any]:
        """A copy of the cache and the mask with one line for each of `starts`: the model writes into it."""
        import torch

        chosen = copy.copy(self.cache)
        chosen.layers = [copy.copy(layer) for layer in self.cache.layers]  # selecting makes new tensors: none is shared
        if len(self.place_of) == 1:  # one text for all: the model copies it anyway when it adds to it
            for layer in chosen.layers:
                layer.keys, layer.values = (each.expand(len(starts), -1, -1, -1) for each in (layer.keys, layer.values))
            return chosen, self.mask.expand(len(starts), -1)
        places = torch.tensor([self.place_of[start] for start in starts], device=self.mask.device)
        chosen.batch_select_indices(places)
        return chosen, self.mask[places]


def read(model: Any, starts: Sequence[Tokens]) -> Started:
    """Let each different start go through the model once."""
    texts = list(dict.fromkeys(starts))
    ids, mask = pad_left(texts, 0, model.device)
    found = model(input_ids=ids, attention_mask=mask, position_ids=positions(mask), use_cache=True, logits_to_keep=1)
    return Started(found.past_key_values, mask, {text: place for place, text in enumerate(texts)})


def pad_left(texts: Sequence[Tokens], token: int, device: Any) -> tuple[Any, Any]:
    """(ids, mask), both (texts, tokens of the longest)."""
    import torch

    longest = max(1, *map(len, texts))  # texts of nothing get one masked token
    ids = torch.tensor([[token] * (longest - len(text)) + list(text) for text in texts], device=device)
    mask = torch.tensor([[0] * (longest - len(text)) + [1] * len(text) for text in texts], device=device)
    return ids, mask


def positions(mask: Any) -> Any:
    """Where the tokens of a mask (rows, tokens) stand, padding left out."""
    return (mask.cumsum(-1) - 1).clamp(min=0)
