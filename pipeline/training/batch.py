"""From the global batch of a recipe to what each process does."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.errors import UserError


@dataclass(frozen=True)
class Batch:
    """Rows that one process takes at once, and how many such steps it accumulates."""

    micro: int
    accumulation: int


def derive(global_batch: int, world_size: int, largest_micro: int, where: str = "") -> Batch:
    """Split a global batch over the processes: the largest micro-batch up to the limit that divides a process's share.

    Raises UserError with both numbers when the global batch does not divide by the number of processes.
    """
    if global_batch % world_size:
        raise UserError(
            f"global_batch_size {global_batch} does not divide by the number of processes", value=world_size,
            where=where, do=f"use {global_batch // world_size * world_size or world_size} or another number of GPUs",
        )  # fmt: skip
    share = global_batch // world_size
    micro = next(size for size in range(min(share, largest_micro), 0, -1) if share % size == 0)
    return Batch(micro, share // micro)
