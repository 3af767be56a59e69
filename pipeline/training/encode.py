"""Prompts and completions to token ids, with loss on the completion only; text that repeats is tokenized once."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.errors import UserError

IGNORED = -100
"""Label of a token that carries no loss (torch's cross entropy)."""

Ids = npt.NDArray[np.int32]

BATCH = 2048
"""Rows that are in memory at once as token ids."""
CHECKED = 64
"""Rows at the beginning that are also tokenized whole, to see that putting parts together gives the same."""
MOST_PARTS = 1 << 17
"""Different parts that are remembered; at a thousand bytes each this is the most memory that free text can take."""
PROGRESS_SECONDS = 5.0

_PART = re.compile(r"(?=.)[^.;:]*(?:[.;:](?! [A-Za-z])[^.;:]*)*[.;:]?", re.DOTALL)
"""Text up to a stop that a space and a letter follow. Written without looking back, which takes twice the time."""
_SPANNING = re.compile(r"[.;:][ Ġ▁]")
"""A token with a stop before a space, as byte-level (Ġ) and SentencePiece (▁) vocabularies write it."""
_BEFORE = "."
"""Stands before every part but the first when it is tokenized: some tokenizers treat the start of a text specially."""


class Encoder:
    """Tokenizes texts made of statements that repeat: each different statement once.

    Texts are cut between `.`, `;` or `:` and a space before a letter, and the ids of the parts are joined. This
    gives the ids of the whole text when no token of the vocabulary spans a cut (no byte-pair merge can then cross it)
    and pre-tokenization splits there; the first is looked up, and both are tried on `samples`. Where either fails,
    texts are tokenized whole.
    """

    def __init__(self, tokenizer: Any, samples: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._first: dict[str, Ids] = {}
        self._later: dict[str, Ids] = {}
        self._skipped = len(self._whole([_BEFORE])[0])
        self.cuts = not any(map(_SPANNING.search, tokenizer.get_vocab()))
        if self.cuts:
            joined = map(np.concatenate, self.parts(samples))
            self.cuts = all(map(np.array_equal, joined, self._whole(samples)))

    def parts(self, texts: Sequence[str]) -> list[list[Ids]]:
        """The token ids of each text, in one or more arrays. No special tokens are added."""
        if not self.cuts:
            return [[ids] for ids in self._whole(texts)]
        if len(self._first) + len(self._later) > MOST_PARTS:
            self._first, self._later = {}, {}
        cut = [_PART.findall(text) or [text] for text in texts]
        self._learn(self._first, {first for first, *_ in cut}, "", 0)
        self._learn(self._later, {part for _, *rest in cut for part in rest}, _BEFORE, self._skipped)
        return [[self._first[first], *map(self._later.__getitem__, rest)] for first, *rest in cut]

    def _learn(self, known: dict[str, Ids], parts: set[str], before: str, skipped: int) -> None:
        """Add the ids of the parts that are not known, each tokenized after `before`, whose ids are left out."""
        new = sorted(parts - known.keys())
        if new:
            known.update(zip(new, (ids[skipped:] for ids in self._whole([before + part for part in new])), strict=True))

    def _whole(self, texts: Sequence[str]) -> list[Ids]:
        encoded = self._tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False)["input_ids"]
        return [np.array(ids, dtype=np.int32) for ids in encoded]


def encode(tokenizer: Any, prompts: Iterable[str], completions: Iterable[str], end: int) -> Iterator[pa.Table]:
    """Tables of `input_ids` and `labels` (lists of int32) for SFTTrainer, BATCH rows each.

    The loss covers the completion and the end-of-turn token `end`. Prompt and completion are tokenized apart, so that
    the prompt's ids are those seen at inference. `prompts` are texts that went through the chat template, hence no
    special tokens are added.
    """
    pairs = zip(prompts, completions, strict=True)
    encoder = None
    while batch := list(islice(pairs, BATCH)):
        encoder = encoder or Encoder(tokenizer, list(chain.from_iterable(batch[:CHECKED])))
        yield _table(encoder.parts([prompt for prompt, _ in batch]), encoder.parts([text for _, text in batch]), end)


def _table(prompts: list[list[Ids]], completions: list[list[Ids]], end: int) -> pa.Table:
    """One row for each prompt and completion, given as arrays of ids."""
    closing = [np.array([end], dtype=np.int32)]
    pieces = [array for pair in zip(prompts, completions, strict=True) for array in chain(*pair, closing)]
    lengths = np.empty((len(prompts), 2), dtype=np.int64)
    lengths[:, 0] = [sum(map(len, prompt)) for prompt in prompts]
    lengths[:, 1] = [sum(map(len, completion)) + 1 for completion in completions]
    ids = np.concatenate(pieces)
    learned = np.tile([False, True], len(prompts)).repeat(lengths.ravel())
    ends = np.concatenate([[0], lengths.sum(axis=1).cumsum()]).astype(np.int32)
    columns = {"input_ids": ids, "labels": np.where(learned, ids, np.int32(IGNORED))}
    return pa.table({name: pa.ListArray.from_arrays(ends, values) for name, values in columns.items()})


def write_encoded(path: Path, tables: Iterable[pa.Table], total: int, name: str) -> None:
    """Write tables to an Arrow stream file that `datasets.Dataset.from_file` maps.

    Says now and then how many of the `total` rows of `name` are done.
    """
    done, told = 0, time.monotonic()
    schema = pa.schema({"input_ids": pa.list_(pa.int32()), "labels": pa.list_(pa.int32())})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        for table in tables:
            writer.write_table(table)
            done += len(table)
            if time.monotonic() - told > PROGRESS_SECONDS:
                told = time.monotonic()
                print(f"{name}: {done} of {total} rows tokenized", flush=True)


def token_counts(path: Path) -> npt.NDArray[np.int64]:
    """How many tokens each row of a file has that `write_encoded` wrote."""
    with pa.memory_map(str(path)) as file:
        chunks = pa.ipc.open_stream(file).read_all()["input_ids"].chunks
        return np.concatenate([np.diff(chunk.offsets.to_numpy()) for chunk in chunks]).astype(np.int64)


def check_lengths(lengths: npt.NDArray[np.int64], limit: int | None, where: str) -> None:
    """Raise UserError when a row is longer than `limit` tokens: cut rows would lose their answer silently."""
    if limit is not None and (over := int((lengths > limit).sum())):
        raise UserError(
            f"{over} of {len(lengths)} rows are longer than the limit of {limit} tokens; the longest has",
            value=int(lengths.max()), where=where, do="raise the limit or lower data.max_variables",
        )  # fmt: skip
