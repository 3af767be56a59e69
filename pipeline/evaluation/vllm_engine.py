"""Generation by vLLM, where it is installed: whole models and adapters, the same prompts, seeds and ends."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.evaluation.generate import Completion
from pipeline.evaluation.stop_at_answer import cut_at_answer
from pipeline.recipe import Model
from pipeline.recipe_evaluate import Evaluate

PART = 32
"""Batches that are handed over at once, and kept together: vLLM orders and batches them by itself."""


def load(source: str, model: Model) -> tuple[Any, Any, list[int]]:
    """(the engine, the adapter to ask or None, ids of the tokens that end a turn).

    Raises UserError where vLLM is not installed.
    """
    if importlib.util.find_spec("vllm") is None:
        raise UserError(
            "vLLM is not installed in this environment", value="vllm", where="evaluate.engine",
            do="install requirements-vllm.txt in an environment of its own, or use engine transformers",
        )  # fmt: skip
    from vllm import LLM
    from vllm.lora.request import LoRARequest

    from pipeline.training.models import ADAPTER_CONFIG, adapter_base, end_of_turn, load_base_tokenizer
    from pipeline.training.settle import settled_here

    model, base = settled_here(model), adapter_base(Path(source))
    tokenizer = load_base_tokenizer(source, model)
    dtype = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}[model.precision]
    lora = {"enable_lora": True, "max_lora_rank": _rank(Path(source) / ADAPTER_CONFIG)} if base else {}
    engine = LLM(
        model=base or source, tokenizer=source, revision=model.revision if source == model.base else None,
        dtype=dtype, enable_prefix_caching=True, quantization=None if model.quantization == "none" else "bitsandbytes",
        **lora,
    )  # fmt: skip
    adapter = LoRARequest("adapter", 1, source) if base else None
    return engine, adapter, sorted({end_of_turn(tokenizer), int(tokenizer.eos_token_id)})


def _rank(config: Path) -> int:
    """The rank of a LoRA adapter."""
    return int(json.loads(config.read_text(encoding="utf-8"))["r"])


def complete(
    loaded: tuple[Any, Any, list[int]],
    prompts: Sequence[str],
    own: Evaluate,
    seed: int,
    known: Mapping[int, Completion],
    on_batch: Callable[[dict[int, Completion]], None],
) -> list[Completion]:
    """A completion for each prompt, in their order. A prompt's random numbers depend on its place alone."""
    from vllm import SamplingParams

    engine, adapter, ends = loaded
    found = dict(known)
    todo = [place for place in range(len(prompts)) if place not in found]
    for first in range(0, len(todo), PART * own.batch_size):
        places = todo[first : first + PART * own.batch_size]
        asked = [{"prompt_token_ids": _ids(engine, prompts[place])} for place in places]
        wanted = [
            SamplingParams(
                temperature=own.temperature, max_tokens=own.max_new_tokens, seed=seed + place, stop_token_ids=ends
            )
            for place in places
        ]
        outputs = engine.generate(asked, wanted, lora_request=adapter)
        made = {place: _completion(each.outputs[0], own) for place, each in zip(places, outputs, strict=True)}
        found |= made
        on_batch(made)
    return [found[place] for place in range(len(prompts))]


def _ids(engine: Any, prompt: str) -> list[int]:
    """The prompt went through the chat template: no special tokens are to be added again."""
    ids: list[int] = engine.get_tokenizer()(prompt, add_special_tokens=False)["input_ids"]
    return ids


def _completion(output: Any, own: Evaluate) -> Completion:
    cut = cut_at_answer(str(output.text)) if own.stop_at_answer else None
    ended = output.finish_reason == "stop" or cut is not None
    return Completion(str(output.text) if cut is None else cut, len(output.token_ids), ended)
