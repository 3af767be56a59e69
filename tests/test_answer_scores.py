"""Scored answers: the numbers of plain forward passes, whatever the batches, paddings and answers."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from pipeline.causal.generate import sample
from pipeline.errors import StageFailed
from pipeline.evaluation.answer_scores import answer_probabilities
from pipeline.evaluation.generate import Completion
from pipeline.recipe import Model, ScratchModel, Tokenizer
from pipeline.tasks.corr2cause import message
from pipeline.training.models import load_for_inference, render_prompt
from pipeline.training.scratch import save_scratch

FP32 = {"base": "x", "precision": "fp32"}
ROWS = sample("train", [3, 4], 36, 5)
MESSAGES = [message(row.premise, row.hypothesis, "default") for row in ROWS]
GROUPS = [row.premise for row in ROWS]


def scratch(folder: Path, architecture: Any, split: Any) -> Path:
    settings = ScratchModel(
        architecture=architecture, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=1024, tokenizer=Tokenizer(vocab_size=600, split=split),
    )  # fmt: skip
    save_scratch(settings, [*MESSAGES, "Therefore: Yes", "Therefore: No"] * 2, folder, 3)
    return folder


@pytest.fixture(scope="module", params=["qwen2", "llama", "phi3"])
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    folder = scratch(tmp_path_factory.mktemp("scored"), request.param, "word")
    return load_for_inference(folder, Model.model_validate(FP32))


def plain(model: Any, tokenizer: Any, prompt: str, answer: str) -> float:
    """The log-probability of an answer by one forward pass over all of it."""
    import torch

    asked = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    said = tokenizer(answer, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        scores = model(torch.tensor([asked + said])).logits[0].log_softmax(-1)
    return sum(float(scores[len(asked) - 1 + place, token]) for place, token in enumerate(said))


def wanted(model: Any, tokenizer: Any, prompts: list[str], prefix: str) -> list[float]:
    pairs = [[plain(model, tokenizer, prompt, prefix + word) for word in ("Yes", "No")] for prompt in prompts]
    return [1 / (1 + math.exp(no - yes)) for yes, no in pairs]


@pytest.mark.parametrize("prefix", ["Therefore: ", "", "The answer, which took several steps, is: "])
@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_the_numbers_are_those_of_plain_passes(loaded: tuple[Any, Any], prefix: str, batch_size: int) -> None:
    model, tokenizer = loaded
    prompts = [render_prompt(tokenizer, text) for text in MESSAGES]
    found = answer_probabilities(model, tokenizer, prompts, GROUPS, prefix=prefix, batch_size=batch_size)
    probabilities = [each.p_yes for each in found]
    assert probabilities == pytest.approx(wanted(model, tokenizer, prompts, prefix), abs=1e-5)
    assert len({round(each, 5) for each in probabilities if each is not None}) > 10
    for each in found:
        assert each.p_yes is not None and each.text == prefix + ("Yes" if each.p_yes > 0.5 else "No")


def test_answers_of_several_tokens_and_different_lengths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`Yes` in three tokens and `No` in one or two: letters of their own in a tokenizer that never saw the words."""
    from pipeline.evaluation import answer_scores

    settings = ScratchModel(hidden_size=32, intermediate_size=64, num_attention_heads=2, num_key_value_heads=2,
                            max_position_embeddings=1024, tokenizer=Tokenizer(vocab_size=300))  # fmt: skip
    save_scratch(settings, MESSAGES, tmp_path, 3)
    model, tokenizer = load_for_inference(tmp_path, Model.model_validate(FP32))
    monkeypatch.setattr(answer_scores, "WORDS", ("Yes", "Nope, it does not"))
    lengths = [len(tokenizer(f"Therefore: {word}")["input_ids"]) for word in answer_scores.WORDS]
    assert lengths[0] != lengths[1] and min(lengths) > 1
    prompts = [render_prompt(tokenizer, text) for text in MESSAGES[:20]]
    found = answer_probabilities(model, tokenizer, prompts, GROUPS[:20], prefix="Therefore: ", batch_size=6)
    scored = [[plain(model, tokenizer, p, f"Therefore: {word}") for word in answer_scores.WORDS] for p in prompts]
    assert [each.p_yes for each in found] == pytest.approx([1 / (1 + math.exp(b - a)) for a, b in scored], abs=1e-5)


def test_groups_need_share_nothing_and_padding_sides_do_not_matter(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    prompts = [*(render_prompt(tokenizer, text) for text in MESSAGES[:6]), "A correlates with B.", MESSAGES[0]]
    asked: dict[str, Any] = {"prefix": "Therefore: ", "batch_size": 4}
    as_one = answer_probabilities(model, tokenizer, prompts, ["one"] * len(prompts), **asked)
    apart = answer_probabilities(model, tokenizer, prompts, [str(i) for i in range(len(prompts))], **asked)
    tokenizer.padding_side = "right"
    right = answer_probabilities(model, tokenizer, prompts, [*GROUPS[:6], "x", "y"], **asked)
    tokenizer.padding_side = "left"
    for found in (as_one, apart, right):
        told = [each.p_yes for each in found]
        assert told == pytest.approx(wanted(model, tokenizer, prompts, "Therefore: "), abs=1e-5)


def test_an_interrupted_scoring_goes_on_to_the_same_bits(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    prompts = [render_prompt(tokenizer, text) for text in MESSAGES]
    batches: list[dict[int, Completion]] = []
    asked: dict[str, Any] = {"prefix": "Therefore: ", "batch_size": 8}
    whole = answer_probabilities(model, tokenizer, prompts, GROUPS, on_batch=batches.append, **asked)
    assert len(batches) > 4
    known = {place: each for made in batches[:3] for place, each in made.items()}
    again: list[dict[int, Completion]] = []
    assert answer_probabilities(model, tokenizer, prompts, GROUPS, known=known, on_batch=again.append, **asked) == whole
    assert again == batches[3:]


def test_the_premise_goes_through_the_model_once(loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = loaded
    tokens: list[int] = []
    forward = model.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        tokens.append(kwargs["input_ids"].numel())
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", counted)
    row = max(ROWS, key=lambda each: len(each.premise))
    asked = [f"{x} directly causes {y}." for x, y in pairwise("ABCD")]
    prompts = [render_prompt(tokenizer, message(row.premise, each, "default")) for each in asked]
    answer_probabilities(model, tokenizer, prompts, ["p"] * 3, prefix="Therefore: ", batch_size=8)
    lengths = [len(tokenizer(each, add_special_tokens=False)["input_ids"]) for each in prompts]
    assert sum(tokens) < lengths[0] + 3 * 40 < sum(lengths)


def test_numbers_that_are_not_finite_are_no_answer(tmp_path: Path) -> None:
    import torch

    folder = scratch(tmp_path, "qwen2", "word")
    model, tokenizer = load_for_inference(folder, Model.model_validate(FP32))
    with torch.no_grad():
        model.lm_head.weight.fill_(torch.nan)
    with pytest.raises(StageFailed, match="no finite probability of Yes and No"):
        answer_probabilities(model, tokenizer, MESSAGES[:3], GROUPS[:3], prefix="", batch_size=2)
