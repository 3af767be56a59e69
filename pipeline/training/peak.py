"""How much memory this process took at most."""

from __future__ import annotations

import resource


def peak_memory() -> dict[str, float]:
    """GB of main memory since the process began, and of the GPU since it was first used where there is one."""
    import torch

    told = {"peak_memory_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 3)}
    if torch.cuda.is_available():
        told["peak_gpu_memory_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 3)
    return told
