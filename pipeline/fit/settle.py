"""A recipe for the kind of GPU that a site has: what it leaves open is settled before the run begins."""

from __future__ import annotations

from pipeline.errors import UserError
from pipeline.fit.architecture import named
from pipeline.fit.cards import Card
from pipeline.recipe import KINDS, Recipe
from pipeline.settings import nearest
from pipeline.training.settle import settled

OTHERS = ("lm_head", "embed_tokens")
"""Modules outside the layers that adapters may be put on."""


def for_card(recipe: Recipe, card: Card | None) -> Recipe:
    """The recipe with `auto` settled for a card; as it is, for the job to settle, where no card is known.

    Raises UserError for bf16 or FlashAttention 2 on a card that does not have them.
    """
    stages = [entry for entry in recipe.stages if KINDS[entry.kind].makes != "dataset"]
    if card is None or not any(recipe.resources[entry.name].gpus for entry in stages):
        return recipe
    return recipe.model_copy(update={"model": settled(recipe.model, bf16=card.bf16, gpu=card.name)})


def assumed(recipe: Recipe, card: Card | None) -> Recipe:
    """The recipe in the precision that its memory is predicted for, where it leaves that to the GPU."""
    if recipe.model.precision != "auto":
        return recipe
    precision = "fp16" if card is not None and not card.bf16 else "bf16"
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"precision": precision})})


def check_targets(recipe: Recipe) -> None:
    """Raise UserError for a LoRA target that is no module of a model whose architecture is known."""
    lora, base = recipe.model.lora, recipe.model.base
    architecture = named(base) if base is not None else None
    if lora is None or architecture is None or isinstance(lora.target_modules, str):
        return
    modules = [*architecture.linears, *OTHERS]
    for target in lora.target_modules:
        if target not in modules:
            raise UserError(
                f"LoRA target {target} matches no module of", value=base, where="model.lora.target_modules",
                do=f"{nearest(target, modules)} its layers have {', '.join(architecture.linears)}",
            )  # fmt: skip
