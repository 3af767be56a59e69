"""From a trace to what one GPU needs: sharding, communication buffers, vLLM's share, fragmentation, context."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.fit.cards import MIB, Card
from pipeline.fit.tracer import Terms

FRAGMENTATION = 0.05
"""Share by which the allocator reserves more than is allocated, until runs have shown it."""
NCCL = 400 * MIB
"""Buffers of one NCCL communicator."""
BUCKET_ELEMENTS = int(5e8)
"""DeepSpeed's default reduce_bucket_size; two such 16-bit buffers with overlap_comm."""
LIVE_PARAMETERS = int(1e9)
"""DeepSpeed's default stage3_max_live_parameters."""
ROLLOUT = "rollout"
"""The phase in which a colocated vLLM generates."""
ORDER = (
    "weights", "adapters", "optimizer", "gradients", "activations", "logits", "kv cache", "vllm", "buffers",
    "fragmentation", "context",
)  # fmt: skip
"""Terms in the order in which tables show them."""


@dataclass(frozen=True)
class Correction:
    """What recorded peaks say about predictions: factors to apply."""

    allocated: float = 1.0
    """Observed over predicted allocator peak."""
    fragmentation: float = FRAGMENTATION
    runs: int = 0


@dataclass(frozen=True)
class Sharing:
    """How the GPUs share a step's state."""

    world: int = 1
    zero: int = 0
    """ZeRO stage; 0 is plain data parallelism."""
    vllm: float = 0.0
    """Bytes that a colocated vLLM takes for itself."""
    vllm_sleeps: bool = False
    """Whether vLLM gives its memory back while the model trains."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one GPU at a peak, by term."""

    phase: str
    terms: Terms = field(default_factory=dict)

    @property
    def total(self) -> float:
        """All bytes that the process takes."""
        return sum(self.terms.values())

    @property
    def allocated(self) -> float:
        """What torch.cuda.max_memory_allocated is predicted to say."""
        return self.total - sum(self.terms.get(term, 0.0) for term in ("fragmentation", "context", "vllm"))

    def fits(self, card: Card) -> bool:
        """Whether a card has room for it, headroom kept."""
        return self.total <= card.usable


def on_gpu(phases: dict[str, Terms], sharing: Sharing, context: float, correction: Correction) -> Memory:
    """The phase of a step that needs most on one GPU, with everything that no trace sees. `context` in bytes."""
    found = [_of_phase(phase, terms, sharing, context, correction) for phase, terms in phases.items()]
    return max(found, key=lambda memory: memory.total)


def _of_phase(phase: str, terms: Terms, sharing: Sharing, context: float, correction: Correction) -> Memory:
    shared = _sharded(terms, sharing)
    shared["buffers"] = shared.get("buffers", 0.0) + _buffers(terms, sharing)
    shared = {term: value * correction.allocated for term, value in shared.items()}
    shared["fragmentation"] = sum(shared.values()) * correction.fragmentation
    shared["context"] = context
    if sharing.vllm and not (sharing.vllm_sleeps and phase != ROLLOUT):
        shared["vllm"] = sharing.vllm
    return Memory(phase, {term: shared[term] for term in ORDER if shared.get(term, 0.0) > 0})


def _sharded(terms: Terms, sharing: Sharing) -> Terms:
    """ZeRO (Rajbhandari 2020): stage 1 shares optimizer states, 2 gradients too, 3 weights too."""
    shared = {term: value for term, value in terms.items() if value > 0}
    parts = {1: ("optimizer",), 2: ("optimizer", "gradients"), 3: ("optimizer", "gradients", "weights", "adapters")}
    for term in parts.get(sharing.zero, ()):
        shared[term] = shared.get(term, 0.0) / sharing.world
    return shared


def _buffers(terms: Terms, sharing: Sharing) -> float:
    """Bytes for communication: buckets of gradients, gathered weights, NCCL."""
    if sharing.world == 1 and not sharing.zero:
        return 0.0
    gradients = terms.get("adapters") or terms.get("weights", 0.0)
    nccl = NCCL if sharing.world > 1 else 0
    if sharing.zero == 0:
        return nccl + gradients  # DDP keeps them in buckets once more
    buckets = 2 * BUCKET_ELEMENTS * 2
    gathered = min(LIVE_PARAMETERS * 2, terms.get("weights", 0.0)) if sharing.zero == 3 else 0.0
    return nccl + buckets + gathered


def zero_stage(folder: Path, name: str | None) -> int:
    """The ZeRO stage of a DeepSpeed configuration, 0 without one."""
    if name is None:
        return 0
    config: dict[str, Any] = json.loads((folder / name).read_text(encoding="utf-8"))
    return int(config.get("zero_optimization", {}).get("stage", 0))
