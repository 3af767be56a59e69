"""Decoding in batches that completions leave when they have ended: what is written is the same as where all stay."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from test_answer_scores import FP32, MESSAGES, scratch

from pipeline.evaluation.decode import decode
from pipeline.evaluation.shared_prefix import pad_left, read, split
from pipeline.recipe import Model
from pipeline.training.models import load_for_inference, render_prompt

COUNT, LONGEST = 24, 20


@pytest.fixture(scope="module", params=["qwen2", "llama", "phi3"])
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    folder = scratch(tmp_path_factory.mktemp("decode"), request.param, "word")
    return load_for_inference(folder, Model.model_validate(FP32))


def written(loaded: tuple[Any, Any], ends: set[int], *, shared: bool, **settings: Any) -> list[tuple[list[int], bool]]:
    """What the model writes after all prompts, whose start may go through it once."""
    import torch

    model, tokenizer = loaded
    texts = [tuple(tokenizer(render_prompt(tokenizer, text))["input_ids"]) for text in MESSAGES[:COUNT]]
    (ids, mask), cache = pad_left(texts, 0, model.device), None
    with torch.inference_mode():
        if shared:
            parts = split(texts)
            assert parts is not None
            (starts, _), (own, own_mask) = (pad_left(part, 0, model.device) for part in parts)
            cache, start_mask = read(model, parts[0]).lines(parts[0])
            ids, mask = torch.cat([starts, own], dim=1), torch.cat([start_mask, own_mask], dim=1)
        return decode(model, tokenizer, ids, mask, ends, settings, max_new_tokens=LONGEST, cache=cache)


def cut(tokens: list[int], ends: set[int]) -> tuple[list[int], bool]:
    """Tokens up to the first that ends them."""
    place = next((place for place, token in enumerate(tokens) if token in ends), None)
    return (tokens, False) if place is None else (tokens[: place + 1], True)


def rows_at_each_step(found: list[tuple[list[int], bool]]) -> list[int]:
    """The size of the batch at each step: those that have ended leave it once they are half of it."""
    inside, sizes = [len(tokens) if ended else LONGEST + 1 for tokens, ended in found], []
    for step in range(1, LONGEST + 1):
        sizes.append(len(inside))
        left = [length for length in inside if length > step]
        inside = left if 2 * len(left) <= len(inside) else inside
    assert len(set(sizes)) > 1
    return sizes


@pytest.mark.parametrize("kept", ["rows leave", "rows stay"])
@pytest.mark.parametrize("shared", [False, True])
def test_rows_that_have_ended_leave_and_the_others_say_the_same(
    loaded: tuple[Any, Any], shared: bool, kept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = loaded
    whole = [tokens for tokens, _ in written(loaded, set(), shared=shared, do_sample=False)]
    assert {len(tokens) for tokens in whole} == {LONGEST}
    ends = {tokens[row % (LONGEST - 2)] for row, tokens in enumerate(whole[:-4])} - set(whole[-1])
    wanted = [cut(tokens, ends) for tokens in whole]
    assert len({len(tokens) for tokens, _ in wanted}) > 3 and {ended for _, ended in wanted} == {True, False}
    if kept == "rows stay":
        monkeypatch.setattr("pipeline.evaluation.decode.takes_a_start", lambda *_: False)
    sizes: list[int] = []
    forward = model.forward

    @functools.wraps(forward)  # generate asks for its parameters
    def counted(*args: Any, **given: Any) -> Any:
        sizes.append(len(given["input_ids"]))
        return forward(*args, **given)

    monkeypatch.setattr(model, "forward", counted)
    assert written(loaded, ends, shared=shared, do_sample=False) == wanted
    steps = sizes[1:] if shared else sizes  # the starts go through the model before
    assert steps == (rows_at_each_step(wanted) if kept == "rows leave" else [COUNT] * LONGEST)


def test_sampled_completions_are_those_of_their_seed(loaded: tuple[Any, Any]) -> None:
    import torch

    def sampled(seed: int) -> list[tuple[list[int], bool]]:
        torch.manual_seed(seed)
        return written(loaded, set(range(100, 160)), shared=True, do_sample=True, temperature=1.0)

    once = sampled(1)
    assert once == sampled(1) and once != sampled(2)
    assert len({len(tokens) for tokens, _ in once}) > 3
    assert all((tokens[-1] in range(100, 160)) == ended for tokens, ended in once)


def test_rows_that_all_end_at_once_are_one_token_long(loaded: tuple[Any, Any]) -> None:
    """Every token ends a completion."""
    _, tokenizer = loaded
    found = written(loaded, set(range(len(tokenizer))), shared=False, do_sample=False)
    assert [len(tokens) for tokens, _ in found] == [1] * COUNT and all(ended for _, ended in found)
