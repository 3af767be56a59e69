"""Formatting and tokenizing rows of five variables: preprocess's way against `datasets.map`, a row at a time.

    python benchmarks/bench_preprocess.py                       20,000 rows
    python benchmarks/bench_preprocess.py --rows 206000         as many as the released training set has
    python benchmarks/bench_preprocess.py --tokenizer FOLDER    a tokenizer of your own instead of the trained one

Each way runs in a process of its own, so that each has its own peak of memory. The tokenizer has about 150,000 tokens,
as Qwen's has, its rules for splitting text and its chat template: trained on the rows and on words made of random
syllables, which fill the vocabulary as the words of other texts fill a real one.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

HOME = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HOME))
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from pipeline.causal.generate import stream  # noqa: E402
from pipeline.stages.rows import read_rows  # noqa: E402
from pipeline.tasks.corr2cause import message, worked  # noqa: E402
from pipeline.training.encode import IGNORED, encode, write_encoded  # noqa: E402
from pipeline.training.models import end_of_turn, load_tokenizer, render_prompts  # noqa: E402

VOCABULARY = 150_000
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_rows(path: Path, count: int) -> list[str]:
    """Write rows with their completions as JSON lines; the texts of the first thousand."""
    rows = islice(stream("train", [5], np.random.default_rng(1), "label"), count)
    texts: list[str] = []
    with path.open("w", encoding="utf-8") as file:
        for index, row in enumerate(rows):
            completion = worked(row.premise, row.hypothesis, "full")
            record = {"premise": row.premise, "hypothesis": row.hypothesis, "completion": completion}
            file.write(json.dumps(record) + "\n")
            if index < 1000:
                texts += [row.input, completion]
            if index % 20000 == 19999:
                print(f"{index + 1} of {count} rows made", flush=True)
    return texts


def made_up_words(count: int) -> list[str]:
    """Different words of two to four random syllables."""
    drawn = random.Random(0)
    syllables = [first + rest for first in "bcdfghklmnprstvwz" for rest in ("a", "e", "i", "o", "u", "an", "en", "ir")]
    words: dict[str, None] = {}
    while len(words) < count:
        words["".join(drawn.choices(syllables, k=drawn.choice((2, 3, 4))))] = None
    return list(words)


def train_tokenizer(texts: list[str], folder: Path) -> None:
    """Save a byte-level BPE tokenizer of about VOCABULARY tokens."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(WORDS), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    words = made_up_words(VOCABULARY)
    prose = [" ".join(words[i : i + 50]) for i in range(0, len(words), 50)]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([*texts, *prose, *prose], trainer)
    special: dict[str, Any] = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special, additional_special_tokens=["<|im_start|>"])
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)


def row_at_a_time(rows: Any, tokenizer: Any, folder: Path) -> Path:
    """`datasets.map` over one row after another."""
    end = end_of_turn(tokenizer)

    def encode_row(row: dict[str, str]) -> dict[str, list[int]]:
        said = [{"role": "user", "content": message(row["premise"], row["hypothesis"], "default")}]
        text = tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
        prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
        completion = [*tokenizer(row["completion"], add_special_tokens=False)["input_ids"], end]
        return {"input_ids": prompt + completion, "labels": [IGNORED] * len(prompt) + completion}

    path = folder / "naive.arrow"
    rows.map(encode_row, remove_columns=rows.column_names, cache_file_name=str(path))
    return path


def in_batches(rows: Any, tokenizer: Any, folder: Path) -> Path:
    """As the preprocess stage does it."""
    path = folder / "ours.arrow"
    messages = (message(row["premise"], row["hypothesis"], "default") for row in rows)
    completions = (row["completion"] for row in rows)
    tables = encode(tokenizer, render_prompts(tokenizer, messages), completions, end_of_turn(tokenizer))
    write_encoded(path, tables, len(rows), "ours")
    return path


WAYS = {"naive": row_at_a_time, "ours": in_batches}


def memory(field: str) -> float:
    """MiB of this process: VmRSS now, VmHWM the peak since the last `5` in clear_refs."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{field}:")[2].split()[0]) / 1024


def measure(way: str, folder: Path, tokenizer_folder: Path) -> None:
    """Print seconds and memory as JSON. Both ways begin with their rows loaded as they want them."""
    import datasets

    datasets.disable_progress_bars()
    source = folder / "rows.jsonl"
    if way == "naive":
        rows: Any = datasets.Dataset.from_json(str(source), cache_dir=str(folder / "cache"))
    else:
        rows = read_rows(source)
    tokenizer = load_tokenizer(tokenizer_folder)
    tokenizer("warm")
    Path("/proc/self/clear_refs").write_text("5")
    before, begun = memory("VmRSS"), time.perf_counter()
    path = WAYS[way](rows, tokenizer, folder)
    seconds, peak = time.perf_counter() - begun, memory("VmHWM")
    figures = {"seconds": seconds, "before": before, "peak": peak, "vocabulary": len(tokenizer)}
    print(json.dumps({**figures, "path": str(path)}))


def measured(way: str, folder: Path, tokenizer: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, "--measure", way, "--folder", str(folder), "--tokenizer", str(tokenizer)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    *told, figures = done.stdout.splitlines()
    print("\n".join(told), end="\n" if told else "", flush=True)
    found: dict[str, Any] = json.loads(figures)
    print(f"{way}: {found['seconds']:.1f} s, memory {found['before']:.0f} MiB before, {found['peak']:.0f} MiB at most",
          flush=True)  # fmt: skip
    return found


def assert_same(one: str, other: str) -> int:
    """Compare two Arrow files row by row; the number of tokens."""
    from datasets import Dataset

    first, second = Dataset.from_file(one), Dataset.from_file(other)
    assert len(first) == len(second), (len(first), len(second))
    tokens = 0
    for start in range(0, len(first), 2000):
        rows, others = first[start : start + 2000], second[start : start + 2000]
        for name in ("input_ids", "labels"):
            assert rows[name] == others[name], f"{name} differ in rows {start} to {start + 1999}"
        tokens += sum(map(len, rows["input_ids"]))
    return tokens


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20000)
    parser.add_argument("--tokenizer", type=Path, help="folder of a saved tokenizer")
    parser.add_argument("--measure", choices=list(WAYS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        measure(asked.measure, asked.folder, asked.tokenizer)
        return
    folder = Path(tempfile.mkdtemp(prefix="bench_preprocess_"))
    try:
        texts = make_rows(folder / "rows.jsonl", asked.rows)
        tokenizer = asked.tokenizer or folder / "tokenizer"
        if not asked.tokenizer:
            train_tokenizer(texts, tokenizer)
        ours, naive = measured("ours", folder, tokenizer), measured("naive", folder, tokenizer)
        tokens = assert_same(naive["path"], ours["path"])
        print(f"{asked.rows} rows, {tokens / asked.rows:.0f} tokens each, vocabulary {ours['vocabulary']}: same rows")
        print(f"ratio: {naive['seconds'] / ours['seconds']:.1f}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
