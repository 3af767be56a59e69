"""How long a stage takes on a card: from operations, bytes and launch overheads, with an interval."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

from pipeline.fit.cards import Card
from pipeline.fit.predict import Setting, penalized
from pipeline.fit.step import BYTES
from pipeline.fit.workload import Work
from pipeline.recipe import Recipe

UTILIZATION = 0.32
"""Share of the card's dense 16-bit operations that training reaches, the middle of published LoRA runs."""
SPREAD = (0.55, 1.9)
"""Shortest and longest time over the likely one: what published runs of this kind lie between."""
LAYER_TRAINING = 3e-3
"""Seconds that launching one layer's kernels takes, forward and backward, with adapters: small batches wait for it."""
LAYER_DECODING = {"none": 0.8e-3, "nf4": 1.7e-3}
"""Seconds a layer that one token of a batch takes in transformers, launch overhead (bitsandbytes' own benchmark)."""
ADAPTER_DECODING = 1.5
"""How much longer with adapters that are not merged."""
UNPACKED = 4.5
"""Bytes that move to unpack one 4-bit weight: read it, write it in 16 bit, read that."""
BANDWIDTH = 0.6
"""Share of the card's bandwidth that such kernels reach."""
WRITTEN = (0.15, 0.5, 1.0)
"""Share of the allowed new tokens after which the longest answer of a batch ends."""
PADDING = {1: 1.0, 2: 0.74, 4: 0.56, 8: 0.46, 16: 0.38, 32: 0.33}
"""Share of tokens that are not padding in random batches of Corr2Cause rows."""
START = 60.0
"""Seconds for imports, the CUDA context, and loading."""
LOADING = 1.0e9
"""Bytes a second at which weights come from shared storage."""


@dataclass(frozen=True)
class Duration:
    """Seconds: the likely time and the ends of its interval."""

    low: float
    likely: float
    high: float

    def __add__(self, other: Duration) -> Duration:
        return Duration(self.low + other.low, self.likely + other.likely, self.high + other.high)


def duration(recipe: Recipe, work: Work, setting: Setting, card: Card) -> Duration | None:
    """Time of a stage; None for a card whose speed is not known."""
    if not card.tflops:
        return None
    loaded = work.architecture.parameters * BYTES[recipe.model.precision]
    start = _spread(START + loaded / LOADING)
    if not work.trains:
        return start + _generation(recipe, work, card, work.rows, work.micro)
    total = start + _spread(_training(recipe, work, setting, card))
    own, size = recipe.own(work.name), setting.micro
    if work.rolls:
        total += _generation(recipe, work, card, work.rows // work.world, work.global_batch // work.world)
    elif work.generates:
        size, rows = own.sampled_at_once, (recipe.data.rows.get(work.name) or 10_000) + own.held_out
        total += _generation(recipe, work, card, rows * own.samples // work.world, size)
    if work.generates and own.guard is not None:
        looks = 1 + work.rows // work.global_batch // own.guard.every_steps
        total += _generation(recipe, work, card, looks * own.guard.rows, size)
    return total


def _spread(seconds: float) -> Duration:
    return Duration(seconds * SPREAD[0], seconds, seconds * SPREAD[1])


def _training(recipe: Recipe, work: Work, setting: Setting, card: Card) -> float:
    """Seconds of all forward and backward passes."""
    real = work.lengths.mean + work.new_tokens * WRITTEN[1]
    sorted_rows = work.options.get("packing") or "group_by_length" in str(work.options.get("train_sampling_strategy"))
    tokens = work.sequences * setting.micro * real / (1.0 if sorted_rows else padding(setting.micro))
    passes = 4 if recipe.model.lora else 6
    passes += (2 if setting.checkpointing else 0) + _without_gradient(recipe, work)
    weights = work.architecture.linear_parameters + work.architecture.embedding
    width = work.architecture.key_value_width * 2 * work.architecture.layers
    compute = passes * tokens * (weights + real * width) / (card.tflops * 1e12 * UTILIZATION)
    launched = work.architecture.layers * LAYER_TRAINING * passes / 4
    unpacking = _unpacking(recipe, work, card) * passes / 2
    return work.rows / work.world / setting.micro * (max(compute, launched) + unpacking)


def _without_gradient(recipe: Recipe, work: Work) -> int:
    """Further passes, counted as the others (2 for one forward): the reference's, and that over PPO's rollout."""
    if work.kind == "dpo":
        return 2
    return (2 if work.rolls and penalized(recipe, work) else 0) + (2 if work.kind == "ppo" else 0)


def _unpacking(recipe: Recipe, work: Work, card: Card) -> float:
    """Seconds to unpack all 4-bit weights once."""
    if recipe.model.quantization == "none":
        return 0.0
    return work.architecture.linear_parameters * UNPACKED / (card.bandwidth * 1e9 * BANDWIDTH)


def padding(micro: int) -> float:
    """Share of real tokens in a random batch."""
    sizes = sorted(PADDING)
    return PADDING[sizes[bisect_right(sizes, micro) - 1]]


def _generation(recipe: Recipe, work: Work, card: Card, rows: int, batch: int) -> Duration:
    """Time in which one process generates completions for so many rows, `batch` at once."""
    architecture, model = work.architecture, recipe.model
    weights = architecture.weight_bytes(model.quantization, BYTES[model.precision])
    cache = batch * (work.lengths.mean + work.new_tokens / 2) * architecture.key_value_width * 4 * architecture.layers
    moved = (weights + cache) / (card.bandwidth * 1e9 * BANDWIDTH)
    overhead = architecture.layers * LAYER_DECODING[model.quantization] * (ADAPTER_DECODING if model.lora else 1.0)
    token = moved * 1.5 if work.options.get("use_vllm") else max(moved, overhead)
    prefill = 2 * rows * work.lengths.mean * architecture.parameters / (card.tflops * 1e12 * UTILIZATION)
    batches = -(-rows // batch)
    low, likely, high = (prefill + batches * work.new_tokens * share * token for share in WRITTEN)
    return Duration(low * 0.7, likely, high * 1.4)
