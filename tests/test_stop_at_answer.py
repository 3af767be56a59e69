"""Completions end at their answer; what counts as one, and that batches do not matter."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.errors import UserError
from pipeline.evaluation.ask import Asker
from pipeline.evaluation.decode import EVERY, Ended
from pipeline.evaluation.generate import complete
from pipeline.evaluation.stop_at_answer import cut_at_answer
from pipeline.load import load_recipe, recipe_file
from pipeline.recipe import Model, ScratchModel, Tokenizer
from pipeline.run import HOME
from pipeline.training.models import load_for_inference
from pipeline.training.scratch import save_scratch


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("A - B. Therefore: Yes. And then some", "A - B. Therefore: Yes."),
        ("A - B. Therefore: No\n\nPremise: Suppose", "A - B. Therefore: No"),
        ("Therefore: No path leads there.\nTherefore: Yes\n", "Therefore: No path leads there.\nTherefore: Yes"),
        ("Therefore: No<|im_end|>", "Therefore: No"),
        ("Therefore: Yes", None),  # `No` may still become `No path`, and what ends here needs no cut
        ("<think>Therefore: Yes.\nBut wait", None),
        ("<think>Therefore: Yes.</think>\nTherefore: No.\n\n", "<think>Therefore: Yes.</think>\nTherefore: No."),
        ("Therefore, A causes B.\n", None),
        ("", None),
    ],
)  # fmt: skip
def test_where_a_text_is_cut(text: str, wanted: str | None) -> None:
    assert cut_at_answer(text) == wanted


SAID = "A causes B. Therefore: Yes.\nPremise: A. B. C. D. A causes B. C causes D. A causes D. B. C. D. A. A. A."


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("stop")
    settings = ScratchModel(hidden_size=32, intermediate_size=64, num_attention_heads=2, num_key_value_heads=2,
                            tokenizer=Tokenizer(vocab_size=400, split="word"))  # fmt: skip
    save_scratch(settings, [SAID, "Therefore: No"] * 8, folder, 1)
    return load_for_inference(folder, Model.model_validate({"base": "x", "precision": "fp32"}))


def test_the_stop_looks_at_each_completion_alone(tokenizer: Any) -> None:
    """Fed token by token: the one that answered stops at the next look, the others never."""
    import torch

    _, words = tokenizer
    said = words(SAID, add_special_tokens=False)["input_ids"]
    others = words(SAID.replace("Therefore: Yes.", "Hence A. B. C."), add_special_tokens=False)["input_ids"]
    length = min(len(said), len(others))
    stop = Ended(words, set(), 3, 2, answers=True, leaves=False)
    stopped = []
    for step in range(1, length + 1):
        ids = torch.tensor([[1, 1, 1, *said[:step]], [1, 1, 1, *others[:step]]])
        stopped.append(stop(ids, None).tolist())
    first = next(step for step, each in enumerate(stopped, start=1) if each[0])
    assert first % EVERY == 0 and "Therefore: Yes." in words.decode(said[:first])
    assert "Therefore: Yes.\n" not in words.decode(said[: first - EVERY])
    assert not any(each[1] for each in stopped) and stop.lengths == [first, None]


def test_generation_stops_there(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose next token is always the one after in SAID: it would go on for ever."""
    import torch

    model, words = tokenizer
    said = words(SAID, add_special_tokens=False)["input_ids"]
    prompt = "A causes B."
    begin = len(words(prompt, add_special_tokens=False)["input_ids"])
    forward = model.forward

    def scripted(*args: Any, **kwargs: Any) -> Any:
        found = forward(*args, **kwargs)
        place = found.past_key_values.get_seq_length() - begin
        found.logits = torch.full_like(found.logits, -10.0)
        found.logits[..., said[place % len(said)]] = 10.0
        return found

    monkeypatch.setattr(model, "forward", scripted)
    asked: dict[str, Any] = {"max_new_tokens": len(said), "batch_size": 4, "temperature": 0.0, "seed": 1}
    whole = complete(model, words, [prompt] * 3, **asked)[0]
    cut = complete(model, words, [prompt] * 3, stop_at_answer=True, **asked)[0]
    assert not whole.ended and whole.tokens == len(said)
    assert cut.ended and cut.text == "A causes B. Therefore: Yes." and cut.tokens < whole.tokens
    assert whole.text.startswith(cut.text)


def test_without_vllm_its_engine_is_refused() -> None:
    recipe = load_recipe(recipe_file(HOME, "smoke"), ["evaluate.engine=vllm"])
    with pytest.raises(UserError, match="vLLM is not installed in this environment"):
        Asker(recipe, recipe.own("evaluate"), "some/model").ask([{"prompt": "p"}], "m", {}, lambda made: None)
