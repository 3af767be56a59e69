"""Generation in batches whose prompts begin alike: the answers of one prompt at a time, for fewer tokens read."""

from __future__ import annotations

import copy
import functools
import json
from pathlib import Path
from typing import Any

import pytest
from test_answer_scores import FP32, MESSAGES, scratch

from pipeline.evaluation.generate import complete
from pipeline.evaluation.shared_prefix import common_length, split, takes_a_start
from pipeline.recipe import Model
from pipeline.training.models import load_for_inference, render_prompt

GREEDY: dict[str, Any] = {"max_new_tokens": 10, "temperature": 0.0, "seed": 1}


@pytest.fixture(scope="module", params=["qwen2", "llama", "phi3"])
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    folder = scratch(tmp_path_factory.mktemp("shared"), request.param, "word")
    return load_for_inference(folder, Model.model_validate(FP32))


def test_texts_that_begin_alike_are_split_where_they_part() -> None:
    long, other = tuple(range(40)), tuple(range(100, 140))
    texts = [(*long, 1, 2), (*other, 7), (*long, 1, 3), (*other, 8, 9), (*long, 4)]
    parts = split(texts)
    assert parts is not None
    starts, rests = parts
    assert starts == [long, other, long, other, long]
    assert rests == [(1, 2), (7,), (1, 3), (8, 9), (4,)]
    assert split([long, long, long]) == ([long[:-1]] * 3, [long[-1:]] * 3), "something remains to predict from"


@pytest.mark.parametrize(
    "texts",
    [
        [(1, 2, 3)],
        [tuple(range(40)), tuple(range(100, 140))],
        [(*range(20), *range(50, 80)), (*range(20), *range(150, 180))],
    ],
    ids=["one", "nothing in common", "less than half in common"],
)
def test_what_saves_too_little_is_not_split(texts: list[tuple[int, ...]]) -> None:
    assert split(texts) is None


def test_a_shared_start_goes_through_the_model_once_and_answers_stay(
    loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = loaded
    prompts = [render_prompt(tokenizer, text) for text in MESSAGES[:24]]
    alone = complete(model, tokenizer, prompts, batch_size=1, **GREEDY)
    sizes: list[int] = []
    forward = model.forward

    @functools.wraps(forward)  # generate asks for its parameters
    def counted(*args: Any, **kwargs: Any) -> Any:
        sizes.append(kwargs["input_ids"].numel())
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", counted)
    together = complete(model, tokenizer, prompts, batch_size=24, **GREEDY)
    assert together == alone and len({each.text for each in together}) > 3
    plain = max(len(tokenizer(text)["input_ids"]) for text in prompts) * len(prompts)
    assert sum(sizes[:2]) < 0.75 * plain, "the shared parts and the rests, then a token for each prompt"
    assert set(sizes[2:]) == {24}


def test_adapters_read_a_shared_start_too_and_another_cache_is_left_alone(loaded: tuple[Any, Any]) -> None:
    from peft import LoraConfig, get_peft_model

    model, tokenizer = loaded
    assert takes_a_start(model, 2000)
    model.generation_config.cache_implementation = "static"
    assert not takes_a_start(model, 2000)
    model.generation_config.cache_implementation = None
    adapted = get_peft_model(
        copy.deepcopy(model), LoraConfig(r=2, init_lora_weights=False, target_modules="all-linear")
    )
    assert takes_a_start(adapted, 2000)
    prompts = [render_prompt(tokenizer, text) for text in MESSAGES[:8]]
    alone = complete(adapted, tokenizer, prompts, batch_size=1, **GREEDY)
    assert complete(adapted, tokenizer, prompts, batch_size=8, **GREEDY) == alone
    assert alone != complete(model, tokenizer, prompts, batch_size=8, **GREEDY)


def test_models_that_look_back_a_few_tokens_only_read_each_prompt_whole(tmp_path: Path) -> None:
    """Padding between the shared part and the rest would count as part of what they look back at."""
    folder = scratch(tmp_path, "qwen2", "word")
    settings = json.loads((folder / "config.json").read_text())
    sliding = {"use_sliding_window": True, "sliding_window": 48, "layer_types": ["sliding_attention"] * 2}
    (folder / "config.json").write_text(json.dumps(settings | sliding))
    model, tokenizer = load_for_inference(folder, Model.model_validate(FP32))
    prompts = [render_prompt(tokenizer, text) for text in MESSAGES[:12]]
    texts = [tuple(tokenizer(text)["input_ids"]) for text in prompts]
    assert split(texts) is not None and common_length(texts) > 10
    assert not takes_a_start(model, 48) and takes_a_start(model, 47)
    alone = complete(model, tokenizer, prompts, batch_size=1, **GREEDY)
    assert complete(model, tokenizer, prompts, batch_size=12, **GREEDY) == alone
