"""Evaluating the released test: answers by probability, and batched generation, each against one row at a time.

    python benchmarks/bench_evaluation.py                  all 1,162 rows scored, 160 of them generated
    python benchmarks/bench_evaluation.py --generated 400
    python benchmarks/bench_evaluation.py --width 128 --layers 4      models of the size of the recipe tiny

Two small models are trained for a minute: one answers at once (`Therefore: No`), one reasons before (docs/trace.md).
Both ways of a comparison run in the same process on the same rows, and must say the same. The default models are so
small that the time of a step hardly depends on its tokens, as on a GPU; larger ones are bound by the CPU's arithmetic,
where a shared premise saves what its tokens cost (nine tenths of a row) and a batch saves next to nothing.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

HOME = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HOME))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from pipeline.causal.generate import stream  # noqa: E402
from pipeline.causal.trace import Style  # noqa: E402
from pipeline.evaluation.answer_scores import answer_probabilities  # noqa: E402
from pipeline.evaluation.generate import Completion, complete  # noqa: E402
from pipeline.evaluation.sets import published_rows  # noqa: E402
from pipeline.recipe import Model, ScratchModel, Tokenizer  # noqa: E402
from pipeline.tasks.corr2cause import message, worked  # noqa: E402
from pipeline.tasks.yes_no import parse_answer  # noqa: E402
from pipeline.training.models import end_of_turn, load_for_inference, render_prompt  # noqa: E402
from pipeline.training.scratch import save_scratch  # noqa: E402

SCORING_BOUND, GENERATION_BOUND = 15.0, 6.0
PRECISION = Model.model_validate({"base": "x", "precision": "fp32"})


def lightly_trained(style: Style, folder: Path, steps: int, width: int, layers: int) -> tuple[Any, Any]:
    """A model of words that has seen `steps` batches of 16 rows on two to four variables."""
    import torch

    rows = list(islice(stream("train", [2, 3, 4], np.random.default_rng(1), "label"), steps * 16))
    asked = [message(row.premise, row.hypothesis, "default") for row in rows]
    said = [worked(row.premise, row.hypothesis, style) for row in rows]
    texts = [message(row.premise, row.hypothesis, "default") for row in published_rows("released-v2")[::10]]
    settings = ScratchModel(
        hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers, max_position_embeddings=2048,
        tokenizer=Tokenizer(vocab_size=2048, split="word"),
    )  # fmt: skip
    save_scratch(settings, [*asked, *said, *texts], folder, 1)
    model, tokenizer = load_for_inference(folder, PRECISION)
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=2e-3)
    for step in range(steps):
        part = slice(step * 16, step * 16 + 16)
        batch = _batch(tokenizer, asked[part], said[part])
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    print(f"trained for {steps} steps", flush=True)
    return model.eval(), tokenizer


def _batch(tokenizer: Any, asked: list[str], said: list[str]) -> dict[str, Any]:
    """Token ids padded on the right, the prompts' labels ignored."""
    import torch

    prompts = [tokenizer(render_prompt(tokenizer, text), add_special_tokens=False)["input_ids"] for text in asked]
    ends = [[*tokenizer(text, add_special_tokens=False)["input_ids"], end_of_turn(tokenizer)] for text in said]
    longest = max(len(p) + len(e) for p, e in zip(prompts, ends, strict=True))
    ids, labels, mask = (torch.full((len(asked), longest), value) for value in (0, -100, 0))
    for row, (prompt, end) in enumerate(zip(prompts, ends, strict=True)):
        both = len(prompt) + len(end)
        ids[row, :both] = torch.tensor(prompt + end)
        labels[row, len(prompt) : both] = torch.tensor(end)
        mask[row, :both] = 1
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


def timed(work: Callable[[], list[Completion]]) -> tuple[float, list[Completion]]:
    """Seconds, and what came of it."""
    started = time.perf_counter()
    found = work()
    return time.perf_counter() - started, found


def bench_scoring(folder: Path, width: int, layers: int) -> bool:
    """Answer scoring against one `generate` a row."""
    model, tokenizer = lightly_trained("answer", folder, 60, width, layers)
    rows = published_rows("released-v2")
    prompts = [render_prompt(tokenizer, message(row.premise, row.hypothesis, "default")) for row in rows]
    groups = [row.premise for row in rows]
    common: dict[str, Any] = {"max_new_tokens": 8, "temperature": 0.0, "seed": 1}
    complete(model, tokenizer, prompts[:4], batch_size=1, **common)  # what is slow the first time only
    slow, one_by_one = timed(lambda: complete(model, tokenizer, prompts, batch_size=1, **common))
    fast, scored = timed(
        lambda: answer_probabilities(model, tokenizer, prompts, groups, prefix="Therefore: ", batch_size=32)
    )
    same = sum(a.text == b.text for a, b in zip(one_by_one, scored, strict=True))
    yes = sum(parse_answer(each.text) == "yes" for each in scored)
    print(f"answer scoring, {len(rows)} rows over {len(set(groups))} premises, {yes} answered Yes")
    return told("one generate a row", slow, "scored", fast, SCORING_BOUND, same, len(rows))


def bench_generation(folder: Path, count: int, width: int, layers: int) -> bool:
    """Batched generation of worked answers against one row at a time."""
    model, tokenizer = lightly_trained("full", folder, 120, width, layers)
    rows = published_rows("released-v2")
    rows = rows[:: max(1, len(rows) // count)][:count]
    prompts = [render_prompt(tokenizer, message(row.premise, row.hypothesis, "default")) for row in rows]
    common: dict[str, Any] = {"max_new_tokens": 128, "temperature": 0.0, "seed": 1, "stop_at_answer": True}
    complete(model, tokenizer, prompts[:2], batch_size=2, **common)
    slow, one_by_one = timed(lambda: complete(model, tokenizer, prompts, batch_size=1, **common))
    fast, batched = timed(lambda: complete(model, tokenizer, prompts, batch_size=40, **common))
    same = sum(a == b for a, b in zip(one_by_one, batched, strict=True))
    mean = np.mean([each.tokens for each in batched])
    print(f"generation, {len(rows)} rows, {mean:.0f} tokens each, {sum(each.ended for each in batched)} ended")
    return told("one row at a time", slow, "batched", fast, GENERATION_BOUND, same, len(rows))


def told(slow_way: str, slow: float, fast_way: str, fast: float, bound: float, same: int, rows: int) -> bool:
    """Print a comparison; whether it holds."""
    print(f"  {slow_way:<20} {slow:8.1f} s  {rows / slow:8.1f} rows/s")
    print(f"  {fast_way:<20} {fast:8.1f} s  {rows / fast:8.1f} rows/s")
    print(f"  {slow / fast:.1f} times faster (bound {bound:g}); {same} of {rows} the same", flush=True)
    return slow / fast >= bound and same == rows


def main() -> int:
    """Both comparisons; 1 when one misses its bound or the answers differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generated", type=int, default=160, help="rows of the comparison of generation")
    parser.add_argument("--width", type=int, default=64, help="of the models")
    parser.add_argument("--layers", type=int, default=2, help="of the models")
    wanted = parser.parse_args()
    size = (wanted.width, wanted.layers)
    with tempfile.TemporaryDirectory() as folder:
        scoring = bench_scoring(Path(folder) / "answer", *size)
        generation = bench_generation(Path(folder) / "trace", wanted.generated, *size)
    return 0 if scoring and generation else 1


if __name__ == "__main__":
    sys.exit(main())
