"""Steps a second of the batched contrastive pass over three passes, and its overhead over plain fine-tuning.

    .venv/bin/python benchmarks/bench_contrastive.py                  4 triplets a micro-batch
    .venv/bin/python benchmarks/bench_contrastive.py --micro 1        one, as on a small GPU
    .venv/bin/python benchmarks/bench_contrastive.py --device cuda    on a GPU, with its peak of memory

A Llama of random weights trains on the same triplets in three ways that take turns: the three inputs in one pass, in
three passes, and the task loss alone over just as many tokens (all three inputs with their outputs: plain
fine-tuning of the same tokens). Printed are ratios of medians; seconds depend on the machine.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

HOME = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HOME))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from pipeline.recipe import ScratchModel, Tokenizer  # noqa: E402
from pipeline.recipe_contrastive import PARTS, Contrastive, GeneratedTriplets  # noqa: E402
from pipeline.tasks.injection_generate import generate  # noqa: E402

WAYS: dict[str, dict[str, Any]] = {
    "batched": {"forward": "batched", "loss": {"task_inputs": list(PARTS)}},
    "three passes": {"forward": "separate", "loss": {"task_inputs": list(PARTS)}},
    "fine-tuning": {"loss": {"lambda_causal": 0.0, "lambda_spurious": 0.0, "task_inputs": list(PARTS)}},
}


def encoded(rows: int, words: int) -> tuple[Any, list[dict[str, list[int]]]]:
    """A tokenizer, and triplets as token ids, each user's text lengthened by so many words of context."""
    from pipeline.training.contrastive_data import TripletEncoder
    from pipeline.training.scratch import train_tokenizer

    triplets = generate(GeneratedTriplets(train=rows), [], 1)["train"]
    triplets = [each.model_copy(update={"context": " ".join(["stone"] * words)}) for each in triplets]
    texts = [each.user(part) for each in triplets for part in PARTS]
    tokenizer = train_tokenizer(ScratchModel(tokenizer=Tokenizer(vocab_size=1024, split="word")), texts)
    encoder = TripletEncoder(tokenizer, 4096)
    found = []
    for each in triplets:
        ids = {part: encoder.encode(each, part) for part in PARTS}
        found.append({f"{part}_{name}": getattr(ids[part], name) for part in PARTS for name in ("prompt", "output")})
    return tokenizer, found


def step_of(way: dict[str, Any], model: Any, pad: int, micro: int, device: str) -> Any:
    """A function that does forward and backward over a micro-batch of triplets."""
    import torch

    from pipeline.training.contrastive import Objective, passed, trained_parts
    from pipeline.training.contrastive_trainer import TripletCollator

    own = Contrastive.model_validate({"global_batch_size": micro, "micro_batch_size": micro, **way})
    collator, objective = TripletCollator(own, pad, trained_parts(own)), Objective(own.loss)

    def step(rows: list[dict[str, list[int]]]) -> None:
        batch = collator(rows)["passes"]
        on = [{k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in each.items()} for each in batch]
        found = passed(model, on, own.representation)
        contrast, _ = objective.contrast(found.representations)
        (contrast + own.loss.lambda_task * found.task.mean()).backward()
        model.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--micro", type=int, default=4, help="triplets a micro-batch")
    parser.add_argument("--words", type=int, default=30, help="words of context, which set the length")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()

    import torch

    from pipeline.training.scratch import make_model

    tokenizer, rows = encoded(given.micro * given.rounds, given.words)
    settings = ScratchModel(architecture="llama", hidden_size=given.hidden, intermediate_size=2 * given.hidden,
                            num_hidden_layers=given.layers, max_position_embeddings=4096)  # fmt: skip
    model = make_model(settings, tokenizer, 1).to(given.device)
    steps = {name: step_of(way, model, tokenizer.pad_token_id, given.micro, given.device) for name, way in WAYS.items()}
    times: dict[str, list[float]] = {name: [] for name in WAYS}
    peaks: dict[str, float] = {}
    for number in range(given.rounds):
        some = rows[number * given.micro : (number + 1) * given.micro]
        for name, step in steps.items():
            if given.device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            started = time.perf_counter()
            step(some)
            times[name].append(time.perf_counter() - started)
            if given.device == "cuda":
                peaks[name] = max(peaks.get(name, 0.0), torch.cuda.max_memory_allocated() / 1024**3)
    middle = {name: statistics.median(each[2:]) for name, each in times.items()}
    tokens = statistics.mean(sum(map(len, each.values())) for each in rows) * given.micro
    print(f"{given.micro} triplets, {tokens:.0f} tokens a step, {model.num_parameters() / 1e6:.1f} M parameters")
    for name, seconds in middle.items():
        print(f"{name:13} {1 / seconds:6.2f} steps/s" + (f", peak {peaks[name]:.2f} GiB" if peaks else ""))
    print(f"batched over three passes: {middle['three passes'] / middle['batched']:.2f} times the steps/s")
    print(
        f"overhead over fine-tuning of the same tokens: {100 * (middle['batched'] / middle['fine-tuning'] - 1):.1f} %"
    )
    if not peaks:
        print(f"peak of the whole process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2:.2f} GiB")


if __name__ == "__main__":
    main()
