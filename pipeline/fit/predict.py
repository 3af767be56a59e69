"""What one stage needs on one GPU, with given choices of micro-batch and checkpointing."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pipeline.fit.cards import MIB, Card, cards
from pipeline.fit.memory import ROLLOUT, Correction, Memory, Sharing, on_gpu, zero_stage
from pipeline.fit.step import BYTES
from pipeline.fit.tracer import Terms, Tracer
from pipeline.fit.workload import Work, generation_step, training_step
from pipeline.recipe import Recipe
from pipeline.run import HOME

NO_CORRECTION = Correction()


@dataclass(frozen=True)
class Setting:
    """What the planner may choose without changing results."""

    micro: int
    accumulation: int
    checkpointing: bool


@dataclass(frozen=True)
class Predictor:
    """Predicts with one tracer, for one card (or none), corrected by what runs have shown."""

    tracer: Tracer
    card: Card | None
    correction: Correction = NO_CORRECTION

    def stage(self, recipe: Recipe, work: Work, setting: Setting) -> Memory:
        """The peak of a stage: of training, of generation, or of vLLM, whichever is most."""
        layers = work.architecture.layers
        phases: dict[str, Terms] = {}
        if work.trains:
            phases |= self.tracer.trace(training_step(recipe, work, setting.micro, setting.checkpointing)).at(layers)
            states = _states(phases["load"], phases["optimizer step"])
            extra = _reference(recipe, work)
            phases = {phase: _plus(terms, {**extra, **_values(work, setting)}) for phase, terms in phases.items()}
            if work.rolls and self._vllm(work):
                phases[ROLLOUT] = _plus(states, extra)
        if work.generates and not self._vllm(work):
            made = self.tracer.trace(generation_step(recipe, work, setting.micro)).at(layers)
            beside = _plus({"optimizer": states["optimizer"]}, extra) if work.trains else {}
            phases |= {phase: _plus(terms, beside) for phase, terms in made.items()}
        return on_gpu(phases, self._sharing(recipe, work), self._context(), self.correction)

    def _context(self) -> float:
        """Bytes of the CUDA context; the largest there is when the card is not known."""
        return (self.card.context if self.card else max(card.context for card in cards())) * MIB

    def _vllm(self, work: Work) -> float:
        """Bytes that vLLM takes of this card; 0 where it runs elsewhere."""
        if not work.options.get("use_vllm") or work.options.get("vllm_mode", "colocate") != "colocate":
            return 0.0
        memory = self.card.memory if self.card else 0
        return float(work.options.get("vllm_gpu_memory_utilization", 0.3)) * memory * MIB

    def _sharing(self, recipe: Recipe, work: Work) -> Sharing:
        zero = zero_stage(HOME / "configs" / "deepspeed", recipe.resources[work.name].deepspeed)
        sleeps = bool(work.options.get("vllm_enable_sleep_mode"))
        return Sharing(work.world, zero if work.trains else 0, self._vllm(work), sleeps)


def _plus(terms: Terms, more: Terms) -> Terms:
    return {term: terms.get(term, 0.0) + more.get(term, 0.0) for term in terms.keys() | more.keys()}


def _states(load: Terms, end: Terms) -> Terms:
    return {"optimizer": end.get("optimizer", 0.0), **{term: load.get(term, 0.0) for term in ("weights", "adapters")}}


def _reference(recipe: Recipe, work: Work) -> Terms:
    """DPO's reference, GRPO's and PPO's with a KL penalty: TRL copies the adapter that it trains, or all weights."""
    if not _has_reference(recipe, work):
        return {}
    lora = recipe.model.lora
    if lora is None:
        return {"weights": float(work.architecture.parameters * BYTES[recipe.model.precision])}
    return {"adapters": float(work.architecture.lora_parameters(lora.r, lora.target_modules) * BYTES["fp32"])}


def _has_reference(recipe: Recipe, work: Work) -> bool:
    if work.kind == "dpo":
        return recipe.model.lora is not None or not work.options.get("precompute_ref_log_probs")
    return work.rolls and penalized(recipe, work)


def penalized(recipe: Recipe, work: Work) -> bool:
    """Whether straying from a reference costs GRPO's or PPO's policy something."""
    return bool(recipe.own(work.name).kl_coefficient if work.kind == "ppo" else work.options.get("beta"))


def _values(work: Work, setting: Setting) -> Terms:
    """What PPO's value head holds on to: the last hidden states in 32 bit, as they are and normalized."""
    if work.kind != "ppo":
        return {}
    tokens = setting.micro * (work.lengths.longest + work.new_tokens)
    return {"activations": float(2 * tokens * work.architecture.config["hidden_size"] * BYTES["fp32"])}


def quantized(recipe: Recipe) -> Recipe:
    """The recipe with NF4 weights."""
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"quantization": "nf4"})})


def in_fp16(recipe: Recipe) -> Recipe:
    """The recipe in the 16-bit format of GPUs before Ampere."""
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"precision": "fp16"})})


def shorter(work: Work, tokens: int) -> Work:
    """The stage with rows of at most so many tokens."""
    mean = min(work.lengths.mean, float(tokens))
    return replace(work, lengths=replace(work.lengths, longest=tokens, mean=mean))
