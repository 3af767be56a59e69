"""Chooses what leaves results alone (micro-batch, checkpointing); proposes the rest where a stage does not fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from pipeline.fit.cards import Card, cards
from pipeline.fit.memory import Memory
from pipeline.fit.predict import Predictor, Setting, in_fp16, quantized, shorter
from pipeline.fit.workload import Work
from pipeline.recipe import Recipe

SHORTEST = 128
"""Tokens below which no length is proposed."""
LENGTH_STEP = 64
WORLDS = (2, 4, 8)

T = TypeVar("T")


@dataclass(frozen=True)
class Choice:
    """How a stage is run on a card, and what it then needs."""

    setting: Setting
    memory: Memory
    fits: bool | None
    """None: no card was named."""
    written: Memory
    """What the recipe's own setting needs."""


@dataclass(frozen=True)
class Proposal:
    """A change to the recipe or the machine with which a stage fits."""

    change: str
    """Overrides, or another card."""
    memory: Memory


def settings(work: Work) -> list[Setting]:
    """What may be chosen, the best first: the recipe's own, then smaller micro-batches, then checkpointing."""
    if not work.trains:
        return [Setting(work.micro, 1, False)]
    micros = sorted({work.batch(most).micro for most in range(1, work.micro + 1)}, reverse=True)
    ways = [False, True] if not work.checkpointing else [True]
    return [Setting(micro, work.batch(micro).accumulation, way) for way in ways for micro in micros]


def choose(predictor: Predictor, recipe: Recipe, work: Work) -> Choice:
    """The first setting that fits the card; the one that needs least when none does."""
    possible = settings(work)
    written = predictor.stage(recipe, work, possible[0])
    if predictor.card is None:
        return Choice(possible[0], written, None, written)
    card = predictor.card
    for way in (False, True):
        group = [each for each in possible if each.checkpointing == way]
        found = first_fitting(group, lambda setting: predictor.stage(recipe, work, setting).fits(card))
        if found is not None:
            return Choice(found, predictor.stage(recipe, work, found), True, written)
    return Choice(possible[-1], predictor.stage(recipe, work, possible[-1]), False, written)


def first_fitting(ordered: Sequence[T], fits: Callable[[T], bool]) -> T | None:
    """The first of `ordered`, which need less and less, that fits; looks at few of them."""
    if not ordered or not fits(ordered[-1]):
        return None
    low, high = 0, len(ordered) - 1
    if fits(ordered[0]):
        return ordered[0]
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(ordered[middle]) else (middle, high)
    return ordered[high]


def proposals(predictor: Predictor, recipe: Recipe, work: Work) -> list[Proposal]:
    """Changes with which a stage that does not fit would, the nearest first; they change results or the machine."""
    assert predictor.card is not None
    found = [_smaller(predictor, recipe, work, "")]
    model = recipe.model
    if model.quantization == "none" and model.lora is not None and model.scratch is None:
        packed, change = quantized(recipe), "model.quantization=nf4"
        choice = choose(predictor, packed, work)
        found.append(Proposal(change, choice.memory) if choice.fits else _smaller(predictor, packed, work, change))
        if not choice.fits:
            found.append(_larger(predictor, change, packed, work))
    found += [_sharded(predictor, recipe, work), _larger(predictor, "", recipe, work)]
    return [each for each in found if each is not None]


def _smaller(predictor: Predictor, recipe: Recipe, work: Work, change: str) -> Proposal | None:
    """Shorter rows for SFT, fewer at once for evaluation, shorter completions where they are sampled."""
    if work.kind == "evaluate":
        sizes = [work.micro >> shift for shift in range(1, work.micro.bit_length())]
        size = first_fitting(sizes, lambda size: bool(choose(predictor, recipe, replace(work, micro=size)).fits))
        if size is None:
            return None
        return _proposal(predictor, recipe, replace(work, micro=size), change, f"{work.name}.batch_size={size}")
    if work.rolls:
        fewer = _fewer_completions(predictor, recipe, work, change)
        if fewer is not None:
            return fewer
    if work.kind == "contrastive" and recipe.own(work.name).forward == "batched":
        apart = _one_after_the_other(recipe, work.name)
        choice = choose(predictor, apart, work)
        if choice.fits:
            told = f"{work.name}.forward=separate"
            return Proposal(" ".join(filter(None, [change, told])), choice.memory)
    word = "max_completion_length" if work.generates else "max_length"
    key = f"{'triplets' if work.kind == 'contrastive' else work.name}.{word}"
    longest = work.new_tokens if work.generates else work.lengths.longest

    def cut(tokens: int) -> Work:
        return replace(work, new_tokens=tokens) if work.generates else shorter(work, tokens)

    lengths = list(range((longest - 1) // LENGTH_STEP * LENGTH_STEP, SHORTEST - 1, -LENGTH_STEP))
    least = settings(work)[-1]
    card = predictor.card
    found = first_fitting(lengths, lambda tokens: predictor.stage(recipe, cut(tokens), least).fits(_card(card)))
    if found is None:
        return None
    return _proposal(predictor, recipe, cut(found), change, f"{key}={found}")


def _one_after_the_other(recipe: Recipe, stage: str) -> Recipe:
    """The recipe with a pass of its own for each text of a triplet."""
    section = {**recipe.sections[stage], "forward": "separate"}
    return recipe.model_copy(update={"sections": {**recipe.sections, stage: section}})


def _fewer_completions(predictor: Predictor, recipe: Recipe, work: Work, change: str) -> Proposal | None:
    """Completions of one step made in several goes: the same policy makes them, only the random numbers are others."""
    group = recipe.own(work.name).num_generations
    for micro in sorted({setting.micro for setting in settings(work)}, reverse=True):
        most = work.batch(micro).accumulation
        whole = [n for n in range(most - 1, 0, -1) if most % n == 0 and n * micro * work.world % group == 0]
        for steps in whole:
            options = {**work.options, "steps_per_generation": steps}
            choice = choose(predictor, recipe, replace(work, micro=micro, options=options))
            if choice.fits and choice.setting.micro == micro:
                told = f"{work.name}.micro_batch_size={micro} {work.name}.steps_per_generation={steps}"
                return Proposal(" ".join(filter(None, [change, told])), choice.memory)
    return None


def _card(card: Card | None) -> Card:
    assert card is not None
    return card


def _proposal(predictor: Predictor, recipe: Recipe, work: Work, before: str, change: str) -> Proposal:
    return Proposal(" ".join(filter(None, [before, change])), choose(predictor, recipe, work).memory)


def _sharded(predictor: Predictor, recipe: Recipe, work: Work) -> Proposal | None:
    """ZeRO-3 over more GPUs, for weights that are not quantized (bitsandbytes' packed ones cannot be shared out)."""
    if not work.trains or recipe.model.quantization != "none":
        return None
    for world in WORLDS:
        if work.global_batch % world == 0 and world >= work.world:
            change = {"gpus": world, "launcher": "deepspeed", "deepspeed": "zero3.json", "nodes": 1, "processes": None}
            resources = recipe.resources[work.name].model_copy(update=change)
            shared = recipe.model_copy(update={"resources": {**recipe.resources, work.name: resources}})
            choice = choose(predictor, shared, replace(work, world=world))
            if choice.fits:
                prefix = f"resources.{work.name}."
                told = f"{prefix}gpus={world} {prefix}launcher=deepspeed {prefix}deepspeed=zero3.json"
                return Proposal(told, choice.memory)
    return None


def _larger(predictor: Predictor, change: str, recipe: Recipe, work: Work) -> Proposal | None:
    """The smallest known card with room for it."""
    for card in cards():
        if card.memory > _card(predictor.card).memory:
            halved = recipe.model.precision == "bf16" and not card.bf16
            choice = choose(replace(predictor, card=card), in_fp16(recipe) if halved else recipe, work)
            if choice.fits:
                before = " ".join(filter(None, [change, "model.precision=fp16" if halved else ""]))
                told = f"a GPU with {card.memory / 1024:.0f} GiB, such as {card.name}"
                return Proposal(" on ".join(filter(None, [before, told])), choice.memory)
    return None
