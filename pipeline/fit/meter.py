"""Counts the bytes that are live while torch code runs, by what they are for, and remembers the peak of each phase."""

from __future__ import annotations

import weakref
from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

ROUNDING = 512
"""The CUDA allocator hands out multiples of this many bytes."""


class PeakMeter(TorchDispatchMode):  # type: ignore[misc]
    """Live bytes of all storages made while it is active, fake ones too, by term.

    What an operation makes counts for `term`, for "logits" where the last dimension is one of `logit_widths`.
    Storages are counted once, from the operation that makes them until nothing refers to them any more.
    """

    def __init__(self, logit_widths: set[int]) -> None:
        super().__init__()
        self.term, self.phase = "weights", "load"
        self.logit_widths = logit_widths
        self.live: Counter[str] = Counter()
        self.peaks: dict[str, Counter[str]] = {}
        self._known: dict[int, tuple[str, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation and count what it made."""
        made = func(*args, **(kwargs or {}))
        for each in tree_iter(made):
            if isinstance(each, torch.Tensor):
                self._count(each)
        spare = _hidden_bytes(func, args)
        if spare:
            self.live["activations"] += spare
        self._remember()
        if spare:
            self.live["activations"] -= spare
        return made

    def enter(self, phase: str, term: str | None = None) -> None:
        """Begin a phase; its peak is at least what is live now."""
        self.phase, self.term = phase, term or self.term
        self._remember()

    def relabel(self, tensor: torch.Tensor, term: str) -> None:
        """Count a tensor that is live already for another term."""
        key = tensor.untyped_storage()._cdata
        if key in self._known:
            old, size = self._known[key]
            self._known[key] = (term, size)
            self.live[old] -= size
            self.live[term] += size

    def _remember(self) -> None:
        peak = self.peaks.get(self.phase)
        if peak is None or sum(self.live.values()) > sum(peak.values()):
            self.peaks[self.phase] = Counter(self.live)

    def _count(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = -(-storage.nbytes() // ROUNDING) * ROUNDING
        wide = tensor.ndim > 1 and tensor.shape[-1] in self.logit_widths
        term = "logits" if wide and self.term == "activations" else self.term
        self._known[key] = (term, size)
        self.live[term] += size
        weakref.finalize(storage, self._release, key).atexit = False

    def _release(self, key: int) -> None:
        term, size = self._known.pop(key)
        self.live[term] -= size


def _hidden_bytes(func: Any, args: Any) -> int:
    """Bytes that an operation's CUDA kernel needs while it runs, beside its result.

    bitsandbytes multiplies more than a few rows by 4-bit weights by unpacking the whole weight first.
    """
    if str(func) != "bitsandbytes.gemm_4bit.default":
        return 0
    inputs, shape = args[0], args[2]
    return int(shape[0]) * int(shape[1]) * int(inputs.element_size()) if inputs.numel() > 8 * shape[1] else 0
