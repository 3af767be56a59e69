"""What a model thinks without writing: how likely it finds given answers, how near it holds prompts to be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.recipe_contrastive import PARTS, Representation
from pipeline.tasks.injection import OPENINGS


def mean_log_likelihoods(model: Any, tokenizer: Any, pairs: Sequence[tuple[str, str]], batch_size: int) -> list[float]:
    """Mean log likelihood (nats a token) of each output after its prompt, a text through the chat template."""
    import torch

    from pipeline.training.contrastive import row_losses
    from pipeline.training.contrastive_data import collate

    found: list[float] = []
    for first in range(0, len(pairs), batch_size):
        some = pairs[first : first + batch_size]
        prompts = tokenizer([prompt for prompt, _ in some], add_special_tokens=False)["input_ids"]
        outputs = tokenizer([output for _, output in some], add_special_tokens=False)["input_ids"]
        rows = [{"one_prompt": p, "one_output": o} for p, o in zip(prompts, outputs, strict=True)]
        batch = collate(rows, pad=tokenizer.pad_token_id, parts=("one",), learned=("one",))
        tail = batch.pop("outputs")
        labels = batch.pop("labels")[:, -tail:].to(model.device)
        with torch.inference_mode():
            inputs = {key: value.to(model.device) for key, value in batch.items()}
            logits = model(**inputs, use_cache=False, logits_to_keep=tail + 1).logits
            found += (-row_losses(logits[:, :-1], labels)[0]).tolist()
    return found


def margins(model: Any, tokenizer: Any, rows: Sequence[dict[str, Any]], batch_size: int) -> list[float]:
    """For each row, with `prompt` and `expected` (its safe answer): the safe answer's mean log likelihood a token less
    that of the likeliest of OPENINGS. Below 0 the model would rather begin to obey than give the safe answer."""
    pairs = [(row["prompt"], text) for row in rows for text in (row["expected"], *OPENINGS)]
    found = mean_log_likelihoods(model, tokenizer, pairs, batch_size)
    step = 1 + len(OPENINGS)
    return [found[i] - max(found[i + 1 : i + step]) for i in range(0, len(found), step)]


def triplet_cosines(
    model: Any, rows: Any, representation: Representation, pad: int, batch_size: int
) -> list[tuple[float, float]]:
    """For each triplet of token ids: the cosines of its benign input with the counterfactual and with the injection."""
    import torch

    from pipeline.training.contrastive import passed, similarities
    from pipeline.training.contrastive_data import collate

    found: list[tuple[float, float]] = []
    for first in range(0, len(rows), batch_size):
        some = [rows[i] for i in range(first, min(first + batch_size, len(rows)))]
        batch = collate(some, pad=pad, parts=PARTS, learned=())
        on = {key: value.to(model.device) if key != "outputs" else value for key, value in batch.items()}
        with torch.inference_mode():
            pairs = similarities(passed(model, [{"parts": PARTS, **on}], representation).representations)
        found += zip(*(each.tolist() for each in pairs), strict=True)
    return found
