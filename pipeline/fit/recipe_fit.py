"""The fit of a whole recipe: every stage that uses a GPU, on one kind of card or on none named."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pipeline.errors import UserError, UserErrors
from pipeline.fit.calibration import Observation, correction
from pipeline.fit.cards import MIB, Card, cards
from pipeline.fit.choose import Choice, Proposal, choose, proposals
from pipeline.fit.duration import Duration, duration
from pipeline.fit.host import disk_bytes, host_memory
from pipeline.fit.memory import Correction, Memory
from pipeline.fit.predict import Predictor, shorter
from pipeline.fit.settle import assumed
from pipeline.fit.tracer import Tracer
from pipeline.fit.workload import Work, work_of
from pipeline.recipe import Recipe
from pipeline.run import RunDir

GIB = 1 << 30
PLANNED = ("sft", "grpo", "dpo", "ppo", "contrastive", "evaluate", "robustness")
"""Kinds of stages whose step is known here."""


@dataclass(frozen=True)
class StageFit:
    """What one stage needs, what was chosen for it, and what would make it fit if it does not."""

    work: Work
    card: Card | None
    choice: Choice
    proposals: tuple[Proposal, ...]
    duration: Duration | None
    host: float
    """Bytes of host memory a node."""
    host_asked: float
    disk: tuple[float, float]
    """Bytes: most while it runs, what stays."""
    correction: Correction
    mean_fits: bool
    """Whether it fits while rows are of mean length: where the longest are not known nothing more can be promised."""
    changed: dict[str, Any] = field(default_factory=dict)
    """What was chosen other than the recipe says: keys of the stage's section."""

    @property
    def gpu_hours(self) -> Duration | None:
        """GPU-hours with their interval."""
        each = self.duration
        factor = self.work.world / 3600
        return each and Duration(each.low * factor, each.likely * factor, each.high * factor)

    def rooms(self) -> list[str]:
        """Names of the known cards that have room for it as the recipe is."""
        return [card.name for card in cards() if self.choice.memory.fits(card)]


def gpu_stages(recipe: Recipe, *, all_of_them: bool = False) -> list[str]:
    """Names of the stages that ask for a GPU (or that would use one) and whose memory can be predicted."""
    use = [entry.name for entry in recipe.stages if entry.kind in PLANNED]
    return [name for name in use if all_of_them or recipe.resources[name].gpus]


def unplanned(recipe: Recipe) -> list[str]:
    """Names of the stages that ask for a GPU and of whose kind nothing can be predicted."""
    return [each.name for each in recipe.stages if each.kind not in PLANNED and recipe.resources[each.name].gpus]


def fit_stage(
    recipe: Recipe, run: RunDir, stage: str, card: Card | None, tracer: Tracer, seen: list[Observation],
    world: int | None = None,
) -> StageFit:  # fmt: skip
    """The fit of one stage for `world` GPUs, or as many as the recipe asks for."""
    recipe = assumed(recipe, card)
    work = work_of(recipe, run, stage, world)
    corrected = correction(seen, card)
    predictor = Predictor(tracer, card, corrected)
    choice = choose(predictor, recipe, work)
    offered = proposals(predictor, recipe, work) if choice.fits is False else []
    mean_fits = choice.fits is not False or (
        not work.lengths.known and bool(choose(predictor, recipe, shorter(work, int(work.lengths.mean))).fits)
    )
    changed: dict[str, Any] = {}
    if work.trains and choice.fits:
        if choice.setting.micro != work.batch(work.micro).micro:
            changed["micro_batch_size"] = choice.setting.micro
        if choice.setting.checkpointing != work.checkpointing:
            changed["gradient_checkpointing"] = choice.setting.checkpointing
    return StageFit(
        work, card, choice, tuple(offered), duration(recipe, work, choice.setting, card) if card else None,
        host_memory(recipe, work), _asked(recipe, stage), disk_bytes(recipe, work) if work.trains else (0.0, 0.0),
        corrected, mean_fits, changed,
    )  # fmt: skip


def _asked(recipe: Recipe, stage: str) -> float:
    text = recipe.resources[stage].memory
    return float(int(text[:-1]) * {"M": 1, "G": 1024, "T": 1024**2}[text[-1]] * MIB)


def applied(recipe: Recipe, fits: list[StageFit]) -> Recipe:
    """The recipe with what the planner chose: nothing of it changes results."""
    sections = {name: dict(section) for name, section in recipe.sections.items()}
    for each in fits:
        sections[each.work.name] |= each.changed
    return recipe.model_copy(update={"sections": sections})


def refuse(fits: list[StageFit], where: str) -> None:
    """Raise UserErrors, one for each stage that cannot fit its card, with the nearest that does.

    A stage whose longest rows are only supposed is refused when not even rows of mean length fit.
    """
    errors = [_refusal(each, where) for each in fits if not each.mean_fits]
    if errors:
        raise UserErrors(errors)


def _refusal(each: StageFit, where: str) -> UserError:
    assert each.card is not None
    needs = each.choice.memory.total / GIB
    told = [f"{offer.change} ({offer.memory.total / GIB:.1f} GiB)" for offer in each.proposals]
    return UserError(
        f"{each.work.name} needs {needs:.1f} GiB of a GPU at least, {each.card.name} has {each.card.usable / GIB:.1f} "
        f"for it; most is for", value=largest_term(each.choice.memory), where=where,
        do="; or ".join(told) if told else "no known card has room: take a smaller model",
    )  # fmt: skip


def largest_term(memory: Memory) -> str:
    """The term that needs most."""
    return max(memory.terms, key=lambda term: memory.terms[term])


def disk_of_run(fits: list[StageFit]) -> float:
    """Most bytes of checkpoints and models that a run has on the disk at one time."""
    most = stays = 0.0
    for each in fits:
        most = max(most, stays + each.disk[0])
        stays += each.disk[1]
    return most
