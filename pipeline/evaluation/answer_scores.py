"""Answers by their probability: log-probabilities of Yes and No, the premise's KV cache shared by its hypotheses."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.errors import StageFailed
from pipeline.evaluation.generate import Completion, Progress
from pipeline.evaluation.shared_prefix import Tokens, common_length, read

WORDS = ("Yes", "No")
AFTER_CUT = 8
"""Characters after a cut that texts have in common too: tokens depend on what is next to them."""


@dataclass(frozen=True)
class Asked:
    """One row: its place, the tokens that it shares with all rows of its group, and those of its own."""

    place: int
    shared: Tokens
    own: Tokens


def answer_probabilities(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    groups: Sequence[str],
    *,
    prefix: str,
    batch_size: int,
    progress: str = "",
    known: Mapping[int, Completion] | None = None,
    on_batch: Callable[[dict[int, Completion]], None] | None = None,
) -> list[Completion]:
    """The likelier of the completions `prefix` + Yes and `prefix` + No for each prompt, in their order, with `p_yes`.

    `groups` names what prompts have in common (their premise): the tokens with which all prompts of a group begin go
    through the model once. The numbers are those of a plain forward pass over prompt and answer, tokenized apart as
    in training. `batch_size` is in rows; `known` and `on_batch` as for `complete`. Raises StageFailed when a
    probability is not finite.
    """
    import torch

    answers = [tuple(tokenizer(prefix + word, add_special_tokens=False)["input_ids"]) for word in WORDS]
    found: dict[int, Completion] = dict(known or {})
    told = Progress(progress, len(prompts))
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for batch in _batches(_split(tokenizer, prompts, groups), batch_size):
                parts = [batch[first : first + batch_size] for first in range(0, len(batch), batch_size)]
                # only whole parts are passed over: what is computed together is the same after an interruption
                parts = [rows for rows in parts if not found.keys() >= {row.place for row in rows}]
                if not parts:
                    continue
                started = read(model, [row.shared for row in batch])
                for rows in parts:
                    scores = _score(model, started.lines([row.shared for row in rows]), rows, answers)
                    scored = zip(rows, scores, strict=True)
                    made = {row.place: _likelier(row.place, pair, prefix, answers) for row, pair in scored}
                    found |= made
                    if on_batch:
                        on_batch(made)
                    told(len(found))
    finally:
        model.train(was_training)
    return [found[place] for place in range(len(prompts))]


def _split(tokenizer: Any, prompts: Sequence[str], groups: Sequence[str]) -> list[list[Asked]]:
    """The rows of each group, the groups in order of the length of what their rows share."""
    members: dict[str, list[int]] = {}
    for place, group in enumerate(groups):
        members.setdefault(group, []).append(place)
    found = []
    for places in members.values():
        encoded = dict(zip(places, _encode(tokenizer, [prompts[place] for place in places]), strict=True))
        length = common_length(list(encoded.values()))
        order = sorted(places, key=lambda place: (len(encoded[place]), place))
        found.append([Asked(place, encoded[place][:length], encoded[place][length:]) for place in order])
    return sorted(found, key=lambda group: (len(group[0].shared), group[0].place))


def _encode(tokenizer: Any, texts: Sequence[str]) -> list[Tokens]:
    """The tokens of each text; what all begin with, to the end of a line, is tokenized once where that is the same.

    Whether it is shows in one text: what stands on both sides of the cut is common to all.
    """

    def tokens(parts: Sequence[str]) -> list[Tokens]:
        return [tuple(ids) for ids in tokenizer(list(parts), add_special_tokens=False)["input_ids"]]

    cut = texts[0].rfind("\n", 0, max(common_length(texts) - AFTER_CUT, 0)) + 1
    if cut and len(texts) > 1:
        head, whole = tokens([texts[0][:cut], texts[0]])
        tails = tokens([text[cut:] for text in texts])
        if head + tails[0] == whole:
            return [head + tail for tail in tails]
    return tokens(texts)


def _batches(groups: Sequence[list[Asked]], batch_size: int) -> Iterator[list[Asked]]:
    """Whole groups together until they have `batch_size` rows or more."""
    batch: list[Asked] = []
    for group in groups:
        batch += group
        if len(batch) >= batch_size:
            yield batch
            batch = []
    if batch:
        yield batch


def _score(model: Any, started: tuple[Any, Any], rows: Sequence[Asked], answers: Sequence[Tokens]) -> list[list[float]]:
    """(rows, answers): the log-probability of each answer after each row.

    Answers that differ in their last token only are read off one pass; others take one each.
    """
    import torch

    cache, shared_mask = started
    if len({answer[:-1] for answer in answers}) > 1:
        each = [_score(model, (copy.deepcopy(cache), shared_mask), rows, [answer]) for answer in answers]
        return [[one[0] for one in pair] for pair in zip(*each, strict=True)]
    texts = [(*row.own, *answers[0][:-1]) for row in rows]
    longest = max(map(len, texts))
    device = shared_mask.device
    ids = torch.tensor([[*text, *[0] * (longest - len(text))] for text in texts], device=device)
    own_mask = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in texts], device=device)
    positions = shared_mask.sum(-1, keepdim=True) + torch.arange(longest, device=device)
    starts = torch.tensor([len(row.own) - 1 for row in rows], device=device)
    kept = longest - int(starts.min())
    logits = model(
        input_ids=ids, attention_mask=torch.cat([shared_mask, own_mask], dim=-1), position_ids=positions,
        past_key_values=cache, use_cache=True, logits_to_keep=kept,
    ).logits  # fmt: skip
    wanted = starts[:, None] - (longest - kept) + torch.arange(len(answers[0]), device=device)
    lines = torch.arange(len(rows), device=device)[:, None]
    scores = logits[lines, wanted].float().log_softmax(-1)  # (rows, tokens of an answer, vocabulary)
    steps = torch.arange(len(answers[0]), device=device)
    said = [scores[:, steps, torch.tensor(answer, device=device)].sum(-1) for answer in answers]
    found: list[list[float]] = torch.stack(said, dim=-1).tolist()
    return found


def _likelier(place: int, scores: Sequence[float], prefix: str, answers: Sequence[Tokens]) -> Completion:
    yes, no = scores
    if not (math.isfinite(yes) and math.isfinite(no)):
        raise StageFailed(
            "the model gives no finite probability of Yes and No, the first time", value=[yes, no],
            where=f"row {place}", do="its weights may not be finite: look at the training log",
        )  # fmt: skip
    chosen = int(no >= yes)
    p_yes = 1 / (1 + math.exp(min(no - yes, 700.0)))
    return Completion(prefix + WORDS[chosen], len(answers[chosen]), True, p_yes=p_yes)
