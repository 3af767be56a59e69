"""Useful tokens a second of the SFT stage: against SFTTrainer as it comes, and against a bare script with its options.

    python benchmarks/bench_sft.py                      160 rows of six variables, batch 8, three rounds
    python benchmarks/bench_sft.py --rows 400 --hidden 256 --rounds 5
    python benchmarks/bench_sft.py --ways stock stage padding-free

A model of random weights trains on the same rows in ways that take turns, each in a process of its own:

    stock          SFTTrainer with the rows as text and its defaults: random batches, padded, activations recomputed;
                   max_length alone is raised, as the default of 1024 tokens would cut the answers off
    padded         the same without recomputing activations
    stage          pipeline.stages.sft with batches of rows of like length, as the recipes have it
    bare           SFTTrainer on the stage's own tokens with the stage's own arguments, and nothing of this project
    padding-free   the stage with padding_free: true (for FlashAttention 2; SDPA then masks all rows with each other)

A useful token is one of a row, padding is none. Counted is the time of the processor within `train`, which other work
on the machine changes least; with --clock that of the wall. Printed are ratios of medians: other machines, same ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HOME = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HOME))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from pipeline import dag  # noqa: E402
from pipeline.load import build_recipe  # noqa: E402
from pipeline.run import RunDir  # noqa: E402

STAGE: dict[str, dict[str, Any]] = {
    "stage": {"train_sampling_strategy": "group_by_length"},
    "padding-free": {"padding_free": True},
}
BATCH = 8


def prepare(root: Path, given: argparse.Namespace) -> None:
    """A run for each way of the stage, the rows made once."""
    for way, more in STAGE.items():
        sizes = {"hidden_size": given.hidden, "intermediate_size": 3 * given.hidden, "num_hidden_layers": given.layers}
        tokenizer = {"vocab_size": 4096, "split": "word"}
        scratch = {**sizes, "max_position_embeddings": 8192, "tokenizer": tokenizer}
        batch = {"global_batch_size": BATCH, "micro_batch_size": BATCH, "max_length": None}
        section: dict[str, Any] = {**batch, "num_train_epochs": 1, "learning_rate": 1e-4, "logging_steps": 10, **more}
        tree = {
            "stages": ["preprocess", "sft"], "model": {"scratch": scratch, "precision": "fp32"}, "sft": section,
            "data": {"min_variables": 6, "max_variables": 6, "rows": {"sft": given.rows, "dev": 8, "test": 8}},
        }  # fmt: skip
        run = RunDir(root, way)
        run.write_resolved(build_recipe(way, tree, way), {})
        subprocess.run(
            [sys.executable, "-m", "pipeline.training.launch", str(run.logs), "preprocess"],
            cwd=HOME, stdout=subprocess.DEVNULL, check=True,
        )  # fmt: skip


class Clock:
    """Seconds of this process's processor time and of the wall within a `with`."""

    def __enter__(self) -> Clock:
        self.began = (time.process_time(), time.perf_counter())
        return self

    def __exit__(self, *_: object) -> None:
        self.processor = time.process_time() - self.began[0]
        self.wall = time.perf_counter() - self.began[1]


def by_stage(run: RunDir) -> dict[str, float]:
    """The stage itself, timed around its training."""
    from pipeline.stages import sft
    from pipeline.training.encode import token_counts
    from pipeline.training.resume import CheckpointCallback

    clock, train = Clock(), CheckpointCallback.train

    def timed(self: Any) -> None:
        with clock:
            train(self)

    CheckpointCallback.train = timed  # type: ignore[method-assign]
    run.stage("sft").mkdir(parents=True, exist_ok=True)
    run.metrics("sft").unlink(missing_ok=True)
    sft.main(run.logs, "sft")
    tokens = token_counts(dag.dataset_of(run.read_resolved()[0], run) / "sft.arrow").sum()
    return {"tokens": float(tokens), "processor": clock.processor, "wall": clock.wall}


def by_trl(run: RunDir, *, bare: bool, **more: Any) -> dict[str, float]:
    """SFTTrainer as it comes (with `more` options) on rows of text, or with the stage's arguments on its tokens."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, set_seed
    from trl import SFTConfig, SFTTrainer

    from pipeline.stages.sft import sft_arguments

    recipe, _ = run.read_resolved()
    set_seed(recipe.seed)
    base, encoded = str(run.model("base")), dag.dataset_of(recipe, run) / "sft.arrow"
    tokenizer = PreTrainedTokenizerFast.from_pretrained(base)
    rows = Dataset.from_file(str(encoded))
    if bare:
        arguments = sft_arguments(recipe, run, "sft")
        arguments.report_to = []
    else:
        rows = Dataset.from_list([_as_text(row, tokenizer) for row in rows])
        arguments = SFTConfig(
            output_dir=str(run.checkpoints("sft")), use_cpu=True, per_device_train_batch_size=BATCH, max_length=None,
            num_train_epochs=1, learning_rate=1e-4, seed=recipe.seed, save_strategy="no", report_to="none",
            disable_tqdm=True, bf16=False, **more,
        )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(base)
    trainer = SFTTrainer(model=model, args=arguments, train_dataset=rows, processing_class=tokenizer)
    with Clock() as clock:
        trainer.train()
    tokens = sum(len(row["input_ids"]) for row in trainer.train_dataset)
    return {"tokens": float(tokens), "processor": clock.processor, "wall": clock.wall}


def _as_text(row: dict[str, Any], tokenizer: Any) -> dict[str, str]:
    """A row's prompt, through the chat template, and its completion."""
    first = next(place for place, label in enumerate(row["labels"]) if label >= 0)
    ids = row["input_ids"]
    return {"prompt": tokenizer.decode(ids[:first]), "completion": tokenizer.decode(ids[first:-1])}


def work(way: str, root: Path) -> None:
    """In a process of its own: train in one way, print the figures."""
    run = RunDir(root, way if way in STAGE else "stage")
    more = {"gradient_checkpointing": False} if way == "padded" else {}
    found = by_stage(run) if way in STAGE else by_trl(run, bare=way == "bare", **more)
    print(json.dumps(found))


def report(found: dict[str, list[dict[str, float]]], clock: str) -> None:
    """Tokens a second of each way, then the two ratios."""
    print(f"{'':14}  useful tokens  seconds ({clock}, median)  useful tokens/s")
    speeds = {}
    for way, runs in found.items():
        seconds = statistics.median(run[clock] for run in runs)
        speeds[way] = statistics.median(run["tokens"] / run[clock] for run in runs)
        print(f"{way:14}  {runs[0]['tokens']:13.0f}  {seconds:24.1f}  {speeds[way]:15.0f}")
    for way in ("stage", "padding-free"):
        for other in ("stock", "padded"):
            if way in speeds and other in speeds:
                print(f"{way} over {other}: {speeds[way] / speeds[other]:.2f}x")
    if "stage" in speeds and "bare" in speeds:
        pairs = [ours[clock] / theirs[clock] - 1 for ours, theirs in zip(found["stage"], found["bare"], strict=True)]
        told = ", ".join(f"{share:+.1%}" for share in pairs)
        print(f"overhead of the stage over bare: {statistics.median(pairs):+.1%} (rounds: {told})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=160)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ways", nargs="+", default=["stock", "padded", "stage", "bare"])
    parser.add_argument("--clock", choices=["processor", "wall"], default="processor")
    parser.add_argument("--work", nargs=2, metavar=("WAY", "ROOT"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        work(given.work[0], Path(given.work[1]))
        return
    os.environ |= {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"), "CUDA_VISIBLE_DEVICES": ""}
    with tempfile.TemporaryDirectory(prefix="bench-sft-") as folder:
        prepare(Path(folder), given)
        found: dict[str, list[dict[str, float]]] = {way: [] for way in given.ways}
        for _ in range(given.rounds):
            for way in given.ways:
                command = [sys.executable, __file__, "--work", way, folder]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                found[way].append(json.loads(done.stdout.splitlines()[-1]))
        report(found, given.clock)


if __name__ == "__main__":
    main()
