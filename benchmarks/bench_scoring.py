"""Judging completions: the trace checker's speed, and the time of GRPO's rewards against a step of recipe tiny.

    .venv/bin/python benchmarks/bench_scoring.py                 both
    .venv/bin/python benchmarks/bench_scoring.py --only check    the checker alone
    .venv/bin/python benchmarks/bench_scoring.py --only step     the rewards alone

Completions are full traces of rows of five variables, three in eight of them damaged: the other five of a group
are alike, as those of a trained model often are, and rewards judge them once. The plain way reads and solves
the premise anew for each completion; it must come to the same verdicts. The model of the step has random weights, so
its completions are as long as `max_completion_length` lets them: this is set to the mean length of the traces.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

HOME = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HOME))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from pipeline.causal import trace  # noqa: E402
from pipeline.causal.generate import Row, sample  # noqa: E402
from pipeline.causal.text import read_row, write_row  # noqa: E402
from pipeline.load import build_recipe  # noqa: E402
from pipeline.settings import read_yaml  # noqa: E402
from pipeline.stages.rows import PROMPT_COLUMNS  # noqa: E402
from pipeline.tasks.corr2cause import message, worked  # noqa: E402

TINY = HOME / "configs" / "tiny.yaml"
CORES = 2
GROUP = 8
"""Completions a prompt, as in recipe tiny."""
REPEATS = 5
Completion = tuple[str, str]
"""The row's input text, and the completion."""


def damaged(text: str, kind: int) -> str:
    """A trace as it is, or with an edge turned, without its first v-structure, or with the other answer."""
    match kind:
        case 5:
            return text.replace(" > ", " < ", 1)
        case 6:
            head, _, tail = text.partition("Colliders: ")
            return f"{head}Colliders: {tail.partition('; ')[2]}"
        case 7:
            return text.replace("Therefore: No", "Therefore: Yes")
        case _:
            return text


def completions(rows: Sequence[Row], each: int) -> list[Completion]:
    """`each` completions of every row."""
    repeated = [row for row in rows for _ in range(each)]
    return [
        (row.input, damaged(worked(row.premise, row.hypothesis, "full"), i % GROUP)) for i, row in enumerate(repeated)
    ]


def caches() -> Iterator[Any]:
    """Every cache of the engine and of the task: making the completions has filled the latter."""
    for name in sorted(sys.modules):
        if name.startswith(("pipeline.causal", "pipeline.tasks")):
            yield from (
                each for each in vars(sys.modules[name]).values() if isinstance(each, functools._lru_cache_wrapper)
            )


def forget() -> None:
    """Empty them."""
    for each in caches():
        each.cache_clear()


def check_all(given: Sequence[Completion]) -> list[list[trace.Verdict]]:
    """The verdicts on completions, each row read once, as the scorer does."""
    read = functools.cache(read_row)
    return [trace.check(text, read(row)) for row, text in given]


def check_plainly(given: Sequence[Completion]) -> list[list[trace.Verdict]]:
    """The same, nothing remembered from one completion to the next."""
    found = []
    for row, text in given:
        forget()
        found.append(trace.check(text, read_row(row)))
    return found


def cpu_seconds(work: Callable[[], object]) -> float:
    """Processor seconds of this process, the least of a few runs: other load on the machine hardly counts."""

    def once() -> float:
        started = time.process_time()
        work()
        return time.process_time() - started

    return min(once() for _ in range(REPEATS))


def rate(given: Sequence[Completion], *, cold: bool) -> float:
    """Completions a processor second; `cold` means that no premise was seen before."""

    def work() -> None:
        if cold:
            forget()
        check_all(given)

    return len(given) / cpu_seconds(work)


def bench_check() -> None:
    """Print how many completions are checked a second."""
    rows = sample("train", [5], 4000, 1, "label")
    grouped, distinct = completions(rows[: len(rows) // GROUP], GROUP), completions(rows, 1)
    few = grouped[:400]
    assert check_plainly(few) == check_all(few)
    plain = len(few) / cpu_seconds(lambda: check_plainly(few))
    with ProcessPoolExecutor(CORES, mp_context=get_context("spawn")) as pool:
        for name, given, cold in (
            (f"new premises, {GROUP} completions each", grouped, True),
            ("new premises, 1 completion each", distinct, True),
            ("known premises", distinct, False),
        ):
            half = len(given) // CORES
            parts = [given[i * half : (i + 1) * half] for i in range(CORES)]
            total = sum(pool.map(functools.partial(rate, cold=cold), parts))
            print(f"check, {name}: {total:,.0f} completions/s on {CORES} cores, {total / CORES / plain:.1f} x plain")
    print(f"plain: {plain * CORES:,.0f} completions/s on {CORES} cores (bound for check: 4,000)")


class Timed:
    """Reward functions that judge traces in place of what the model wrote, and how long they take."""

    def __init__(self, traces: dict[str, str]) -> None:
        self.traces = traces
        self.seconds = [0.0]
        """Of each step; the last one is the step that runs."""

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A reward function with its time added up."""

        @functools.wraps(function)
        def timed(**batch: Any) -> Any:
            texts = [damaged(self.traces[row], i % GROUP) for i, row in enumerate(map(write_row, *rows_of(batch)))]
            batch["completions"] = [[{"role": "assistant", "content": text}] for text in texts]
            started = time.perf_counter()
            values = function(**batch)
            self.seconds[-1] += time.perf_counter() - started
            return values

        return timed


def rows_of(batch: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Premises and hypotheses of a batch."""
    return batch["premise"], batch["hypothesis"]


def bench_step(folder: Path, steps: int) -> None:
    """Print the time of the rewards of a batch of recipe tiny, and of the step that it is part of."""
    from transformers import AutoModelForCausalLM, TrainerCallback
    from trl import GRPOTrainer

    from pipeline.rewards.corr2cause import Scorer
    from pipeline.run import RunDir
    from pipeline.stages.rollouts import rollout_arguments
    from pipeline.training.models import load_tokenizer, set_end_of_turn
    from pipeline.training.scratch import save_scratch

    recipe = build_recipe("tiny", read_yaml(TINY), str(TINY))
    rows = sample("train", [5], 4000, 1, "label")
    traces = {row.input: worked(row.premise, row.hypothesis, "full") for row in rows}
    prompts = dataset(rows, recipe.data.prompt)
    assert recipe.model.scratch is not None
    save_scratch(
        recipe.model.scratch, [*(each[0]["content"] for each in prompts["prompt"]), *traces.values()], folder, 1
    )
    tokenizer, model = load_tokenizer(folder), AutoModelForCausalLM.from_pretrained(folder)
    set_end_of_turn(model, tokenizer)
    length = round(statistics.mean(map(len, tokenizer(list(traces.values()))["input_ids"])))
    recipe.sections["grpo"] |= {"max_steps": steps, "max_completion_length": length}
    timed, ends = Timed(traces), [0.0]

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            ends.append(time.perf_counter())
            timed.seconds.append(0.0)
            forget()  # premises of the next step are new ones

    own = recipe.own("grpo")
    GRPOTrainer(
        model=model,
        reward_funcs=[timed.wrap(each) for each in Scorer(own.rewards, prompts["label"], length).functions()],
        args=rollout_arguments(recipe, RunDir(folder, "bench"), "grpo"),
        train_dataset=prompts,
        processing_class=tokenizer,
        callbacks=[Clock()],
    ).train()
    step = statistics.median(after - before for before, after in pairwise(ends[1:]))
    rewards = statistics.median(timed.seconds[1:-1])
    print(
        f"rewards of {own.global_batch_size} completions: {rewards * 1000:.0f} ms; a GRPO step of {step:.2f} s "
        f"({length} tokens each): {rewards / step:.2%} (bound 2 %)"
    )


def dataset(rows: Sequence[Row], prompt: str) -> Any:
    """What GRPOTrainer reads."""
    from datasets import Dataset

    columns: dict[str, list[Any]] = {key: [getattr(row, key) for row in rows] for key in PROMPT_COLUMNS}
    messages = (message(row.premise, row.hypothesis, prompt) for row in rows)
    return Dataset.from_dict({"prompt": [[{"role": "user", "content": text}] for text in messages], **columns})


def main() -> None:
    """Print every figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["check", "step"])
    parser.add_argument("--steps", type=int, default=5)
    chosen = parser.parse_args()
    if chosen.only != "step":
        bench_check()
    if chosen.only != "check":
        with tempfile.TemporaryDirectory() as name:
            bench_step(Path(name), chosen.steps)


if __name__ == "__main__":
    main()
