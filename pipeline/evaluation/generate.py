"""Batched generation: greedy or sampled, sorted by length, in the order asked for."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.evaluation.decode import decode
from pipeline.evaluation.shared_prefix import pad_left, read, split, takes_a_start
from pipeline.evaluation.stop_at_answer import cut_at_answer

PROGRESS_SECONDS = 10.0


@dataclass(frozen=True)
class Completion:
    """What a model wrote: its text, its number of tokens (the end of turn included), whether it ended by itself."""

    text: str
    tokens: int
    ended: bool
    p_yes: float | None = None
    """Probability of Yes against No, where the answer was scored by it."""
    prompt_tokens: int = 0
    """As a server counts them; 0 is not known."""


class Progress:
    """Says every ten seconds how many rows are done."""

    def __init__(self, name: str, rows: int) -> None:
        """Without a name nothing is said."""
        self.name, self.rows = name, rows
        self.started = self.printed = time.monotonic()

    def __call__(self, done: int) -> None:
        """`done` rows have an answer now."""
        if self.name and time.monotonic() - self.printed > PROGRESS_SECONDS:
            self.printed = time.monotonic()
            print(f"{self.name}: {done}/{self.rows} rows, {self.printed - self.started:.0f} s", flush=True)


def complete(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    batch_size: int,
    temperature: float,
    seed: int,
    progress: str = "",
    known: Mapping[int, Completion] | None = None,
    on_batch: Callable[[dict[int, Completion]], None] | None = None,
    stop_at_answer: bool = False,
) -> list[Completion]:
    """A completion for each prompt, in their order; the model's mode (train or eval) is put back afterwards.

    `prompts` are texts that went through the chat template. Temperature 0 is greedy; sampling is reproducible for
    equal seeds and batch sizes. With `progress`, a line every ten seconds. Batches whose prompts are all `known` (by
    their index) are not asked again; `on_batch` gets what each other batch made. With `stop_at_answer` a completion
    ends with the answer that it states first.
    """
    import torch

    order = sorted(range(len(prompts)), key=lambda index: (len(prompts[index]), index))
    found: dict[int, Completion] = dict(known or {})
    was_training = model.training
    told = Progress(progress, len(prompts))
    model.eval()
    try:
        with torch.inference_mode(), torch.random.fork_rng():
            for first in range(0, len(order), batch_size):
                batch = order[first : first + batch_size]
                if found.keys() >= set(batch):
                    continue
                torch.manual_seed(seed + first)  # so that a batch does not depend on which were asked before it
                asked = [prompts[i] for i in batch]
                written = _complete_batch(model, tokenizer, asked, max_new_tokens, temperature, stop_at_answer)
                made = dict(zip(batch, written, strict=True))
                found |= made
                if on_batch:
                    on_batch(made)
                told(len(found))
    finally:
        model.train(was_training)
    return [found[index] for index in range(len(prompts))]


def _complete_batch(
    model: Any, tokenizer: Any, prompts: list[str], max_new_tokens: int, temperature: float, stop_at_answer: bool
) -> list[Completion]:
    ids, mask, cache = _encode(model, tokenizer, prompts, max_new_tokens)
    sampled = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    ends = _end_tokens(model, tokenizer)
    written = decode(
        model, tokenizer, ids, mask, ends, sampled if temperature > 0 else {"do_sample": False},
        max_new_tokens=max_new_tokens, cache=cache, stop_at_answer=stop_at_answer,
    )  # fmt: skip
    found = []
    for tokens, ended in written:
        text = str(tokenizer.decode(tokens[:-1] if tokens[-1] in ends else tokens, skip_special_tokens=True))
        found.append(Completion((stop_at_answer and cut_at_answer(text)) or text, len(tokens), ended))
    return found


def _encode(model: Any, tokenizer: Any, prompts: list[str], max_new_tokens: int) -> tuple[Any, Any, Any]:
    """(token ids, mask, both (prompts, tokens), and the cache of the first tokens, where they were read before).

    Prompts are padded on the left; where many begin alike, the shared part and the rest each are.
    """
    import torch

    texts = [tuple(ids) for ids in tokenizer(prompts, add_special_tokens=False)["input_ids"]]
    parts = split(texts)
    if parts:
        (shared, _), (own, own_mask) = (pad_left(each, tokenizer.pad_token_id, model.device) for each in parts)
        ids = torch.cat([shared, own], dim=1)
        if takes_a_start(model, ids.shape[1] + max_new_tokens):
            cache, mask = read(model, parts[0]).lines(parts[0])
            mask = torch.cat([mask, own_mask], dim=1)
            return ids, mask, cache
    return *pad_left(texts, tokenizer.pad_token_id, model.device), None


def _end_tokens(model: Any, tokenizer: Any) -> set[int]:
    configured = model.generation_config.eos_token_id
    listed = configured if isinstance(configured, list) else [configured]
    return {int(token) for token in [*listed, tokenizer.eos_token_id] if token is not None}
