"""Decoding a batch of prompts: completions that have ended leave it whenever they are half of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.evaluation.shared_prefix import positions, takes_a_start
from pipeline.evaluation.stop_at_answer import STATED, cut_at_answer

EVERY = 8
"""Tokens between two looks for a stated answer."""
WINDOW = 3 * EVERY
"""Tokens at the end that are looked at."""


class Ended:
    """A stopping criterion of `generate`: how many tokens each completion has that ended, None where it goes on.

    It ends by an end token or, with `answers`, by the answer that it states: each is looked at for that at its own
    steps 8, 16, ..., whatever its batch. With `leaves` the call of `generate` is over when half of them have ended.
    """

    def __init__(
        self, tokenizer: Any, ends: set[int], prompt_length: int, rows: int, *, answers: bool, leaves: bool
    ) -> None:
        """For `rows` prompts, padded to `prompt_length` tokens; `ends` are the tokens that end a completion."""
        self.tokenizer, self.ends, self.prompt_length = tokenizer, ends, prompt_length
        self.answers, self.leaves = answers, leaves
        self.lengths: list[int | None] = [None] * rows

    def __call__(self, ids: Any, scores: Any, **kwargs: Any) -> Any:
        """(rows,): which completions of `ids` (rows, tokens) `generate` takes for ended."""
        import torch

        written = ids.shape[1] - self.prompt_length
        looks = self.answers and written % EVERY == 0
        last = ids[:, -1].tolist()
        for row, length in enumerate(self.lengths):
            if length is None and (last[row] in self.ends or (looks and self._says(ids[row, self.prompt_length :]))):
                self.lengths[row] = written
        over = [length is not None for length in self.lengths]
        enough = self.leaves and 2 * sum(over) >= len(over)
        return torch.tensor([enough or each for each in over], device=ids.device)

    def _says(self, written: Any) -> bool:
        """Whether tokens end with an answer that counts: inside of a thought that is not closed none does."""
        recent = self.tokenizer.decode(written[-WINDOW:])
        return bool(STATED.search(recent)) and cut_at_answer(self.tokenizer.decode(written)) is not None


def decode(
    model: Any,
    tokenizer: Any,
    ids: Any,
    mask: Any,
    ends: set[int],
    settings: Mapping[str, Any],
    *,
    max_new_tokens: int,
    cache: Any = None,
    stop_at_answer: bool = False,
) -> list[tuple[list[int], bool]]:
    """(tokens, whether it ended) of the completion of each row of `ids` (rows, tokens), to its end.

    `cache` holds what the first tokens gave, where they went through the model before; `settings` are those of
    `generate`. A model that cannot go on from a cache decodes all rows until the last has ended.
    """
    import torch

    width, rows = ids.shape[1], list(range(len(ids)))
    leaves = takes_a_start(model, width + max_new_tokens)
    found: dict[int, tuple[list[int], bool]] = {}
    while True:
        ended = Ended(tokenizer, ends, width, len(rows), answers=stop_at_answer, leaves=leaves)
        begun = {"past_key_values": cache, "position_ids": positions(mask)} if cache is not None else {}
        out = model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=width + max_new_tokens - ids.shape[1],
            stopping_criteria=[ended], return_dict_in_generate=True, **begun, **settings,
        )  # fmt: skip
        written = out.sequences[:, width:].tolist()
        for row, tokens, length in zip(rows, written, ended.lengths, strict=True):
            found[row] = (tokens[:length], length is not None)
        left = [place for place, length in enumerate(ended.lengths) if length is None]
        if not left or not leaves or len(written[0]) >= max_new_tokens:
            return [found[row] for row in sorted(found)]
        kept = torch.tensor(left, device=ids.device)
        new = out.sequences.shape[1] - ids.shape[1]
        ids, mask = out.sequences[kept], torch.nn.functional.pad(mask[kept], (0, new), value=1)
        cache, rows = out.past_key_values, [rows[place] for place in left]
        cache.batch_select_indices(kept)
