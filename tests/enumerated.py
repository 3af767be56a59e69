"""All DAGs on a few named nodes, by brute force."""

from __future__ import annotations

from functools import cache
from itertools import permutations

from pipeline.causal.graphs import Graph, from_code, pairs, relabel


@cache
def labelled_dags(n: int) -> tuple[Graph, ...]:
    """Every DAG on n named nodes once: every upper-triangular one under every renaming."""
    named = (
        relabel(from_code(code, n), order) for code in range(1 << len(pairs(n))) for order in permutations(range(n))
    )
    return tuple(dict.fromkeys(named))
