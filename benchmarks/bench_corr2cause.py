"""The causal engine against plain Python with networkx, in one run: enumeration, files, answers.

    .venv/bin/python benchmarks/bench_corr2cause.py

The baseline does what a first version would: networkx asks for each separation, walks each simple path, and groups
labelled DAGs by their independences. It is run to five variables; at six a sample of the DAGs is timed and scaled up.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise, permutations
from pathlib import Path

import networkx as nx
import numpy as np

HOME = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HOME))

from pipeline.causal import enumeration, files  # noqa: E402
from pipeline.causal.dseparation import Independence  # noqa: E402
from pipeline.causal.enumeration import EXACT, RELEASED, equivalence_classes, statements, unique_codes  # noqa: E402
from pipeline.causal.files import Choice  # noqa: E402
from pipeline.causal.graphs import bits, from_code  # noqa: E402
from pipeline.causal.random_dags import random_dag, stated  # noqa: E402
from pipeline.causal.relations import hypotheses  # noqa: E402
from pipeline.causal.released import splits, verdicts  # noqa: E402
from pipeline.causal.solve_file import Totals, solve_rows  # noqa: E402
from pipeline.causal.solver import answer  # noqa: E402
from pipeline.causal.text import Parsed, letters, read_premise, write_premise  # noqa: E402
from pipeline.causal.wording import COMPACT  # noqa: E402

SAMPLED = 60
"""DAGs on six variables that the baseline is timed on."""


def timed(work: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def by_networkx(n: int, codes: list[int]) -> list[list[Independence]]:
    """Independences and relations of DAGs, one query and one path at a time."""
    found = []
    for code in codes:
        dag = from_code(code, n)
        graph = nx.DiGraph()
        graph.add_nodes_from(range(n))
        graph.add_edges_from((i, j) for i, row in enumerate(dag) for j in bits(row))
        joined = graph.to_undirected()
        for x, y in permutations(range(n), 2):
            for path in nx.all_simple_paths(joined, x, y):
                "".join("<>"[graph.has_edge(a, b)] for a, b in pairwise(path))
        found.append([(x, y, z) for x, y, z in statements(n) if nx.is_d_separator(graph, {x}, {y}, set(z))])
    return found


def baseline(n: int) -> int:
    """How many labelled classes there are: each DAG under each renaming, grouped by its independences."""
    groups: set[frozenset[object]] = set()
    for each in by_networkx(n, unique_codes(n).tolist()):
        for order in permutations(range(n)):
            renamed = ((frozenset((order[x], order[y])), frozenset(order[v] for v in z)) for x, y, z in each)
            groups.add(frozenset(renamed))
    return len(groups)


def enumerate_all(largest: int) -> None:
    """Graphs, classes, independences and both kinds of labels from 2 to `largest` variables."""
    for rows in splits("v2", "released", largest).values():
        verdicts(rows, RELEASED)
        verdicts(rows, EXACT)
    for n in range(2, largest + 1):
        equivalence_classes(n, released=False)


def forget() -> None:
    """Empty the caches that enumeration keeps."""
    from pipeline.causal import classes, released

    for module in (enumeration, released, classes):
        for each in vars(module).values():
            if hasattr(each, "cache_clear"):
                each.cache_clear()


def main() -> None:
    """Print every figure."""
    plain = timed(lambda: [baseline(n) for n in range(2, 6)])
    ours = timed(lambda: enumerate_all(5))
    print(f"2 to 5 variables: baseline {plain:.2f} s, ours {ours:.3f} s, {plain / ours:.0f} times faster")
    forget()
    ours = timed(lambda: enumerate_all(6))
    codes = unique_codes(6).tolist()
    chosen = codes[:: len(codes) // SAMPLED][:SAMPLED]
    plain = timed(lambda: by_networkx(6, chosen)) * len(codes) / SAMPLED
    print(
        f"2 to 6 variables, graphs, classes, independences, labels: {ours:.2f} s (bound 5 s); baseline, independences "
        f"and paths of 5,984 DAGs scaled up from {SAMPLED}: {plain:.0f} s, {plain / ours:.0f} times as long"
    )
    with tempfile.TemporaryDirectory() as name:
        written = timed(lambda: files.write(Path(name), Choice()))
        size = sum(path.stat().st_size for path in Path(name).iterdir()) / 1e6
        print(f"all v2 files, {size:.0f} MB: {written:.2f} s (bound 10 s)")
        totals = Totals()
        solved = timed(lambda: sum(1 for _ in solve_rows(Path(name) / "train.csv", totals)))
        print(f"solve train.csv: {totals.labelled / solved:,.0f} rows/s (bound 2,000)")
    slowest = 0.0
    rng = np.random.default_rng(0)
    for degree in (2, 3, 4, 5):
        text = write_premise(stated(random_dag(24, "erdos-renyi", degree, rng), compact=True), letters(24), COMPACT)

        def all_answers(text: str = text) -> None:
            premise = read_premise(text)
            for asked in hypotheses(24):
                answer(Parsed(premise, asked))

        slowest = max(slowest, timed(all_answers))
    print(f"a premise on 24 variables, all {len(hypotheses(24)):,} hypotheses: slowest {slowest:.2f} s (bound 5 s)")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB (bound 2 GB)")


if __name__ == "__main__":
    main()
