"""Triplets as token ids: prompts through the chat template, cut where they may be, tables on disk, padded batches."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pyarrow as pa
import torch

from pipeline.errors import UserError
from pipeline.recipe_contrastive import PARTS, Part
from pipeline.tasks.injection import CONTEXT, Triplet
from pipeline.training.encode import IGNORED
from pipeline.training.models import end_of_turn

BATCH = 1024
"""Rows that are in memory at once as token ids."""
CUT = " [...] "
"""Stands where text was left out."""
_CONTEXT = re.compile(rf"^{CONTEXT}(?P<context>.*?)\n\nQuestion: ", re.DOTALL)
SCHEMA = pa.schema([(f"{part}_{name}", pa.list_(pa.int32())) for part in PARTS for name in ("prompt", "output")])


@dataclass(frozen=True)
class Encoded:
    """Token ids of one part of a triplet; `output` ends with the end of turn and is empty where the row has none."""

    prompt: list[int]
    output: list[int]
    cut: bool
    """Whether text of the prompt was left out."""


class TripletEncoder:
    """Renders and tokenizes the parts of triplets once.

    A part that is longer than `max_length` tokens loses the middle of its context, then the middle of the user's
    text; the system instruction, the template and the output stay whole.
    """

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        self.tokenizer, self.max_length = tokenizer, max_length
        self.end = end_of_turn(tokenizer)
        self.has_system = _takes_system(tokenizer)

    def messages(self, system: str, user: str) -> list[dict[str, str]]:
        """The chat messages; the system instruction begins the user's where the template has no place for it."""
        if self.has_system:
            return [{"role": "system", "content": system}, {"role": "user", "content": user}]
        return [{"role": "user", "content": f"{system}\n\n{user}"}]

    def render(self, system: str, user: str) -> str:
        """The prompt through the chat template, up to where the answer begins."""
        messages = self.messages(system, user)
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    def ids(self, text: str) -> list[int]:
        """Token ids without special tokens added: the template has put those in."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def prompt(self, row: Triplet, part: Part) -> tuple[str, bool]:
        """(the rendered prompt of a part, whether it was cut), so that prompt and output fit.

        Raises UserError when they do not fit although all that may be cut is.
        """
        expected = row.expected(part)
        room = self.max_length - (len(self.ids(expected)) + 1 if expected else 0)
        user, cut = row.user(part), False
        while (over := len(self.ids(self.render(row.system_instruction, user))) - room) > 0:
            shorter = self._shortened(user, over)
            if len(shorter) >= len(user):
                raise UserError(
                    f"instruction and output of {row.id} ({part}) are too long by tokens:", value=over,
                    where="triplets.max_length", do=f"raise it from {self.max_length}",
                )  # fmt: skip
            user, cut = shorter, True
        return self.render(row.system_instruction, user), cut

    def _shortened(self, user: str, tokens: int) -> str:
        """The text with about so many tokens fewer: out of the middle of its context while that has some to give."""
        found = _CONTEXT.match(user)
        if found and len(found["context"]) > 2 * len(CUT):
            first, last = found.span("context")
        else:
            first, last = (found.end() if found else 0), len(user)
        middle = self._without_middle(user[first:last], tokens)
        return user[:first] + middle + user[last:]

    def _without_middle(self, text: str, tokens: int) -> str:
        spans = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        drop = min(len(spans), tokens + len(self.ids(CUT)))
        first = (len(spans) - drop) // 2
        if not drop:
            return text
        before, after = spans[first][0], spans[first + drop - 1][1]
        return text[:before].rstrip().removesuffix(CUT.strip()) + CUT + text[after:].lstrip().removeprefix(CUT.strip())

    def encode(self, row: Triplet, part: Part) -> Encoded:
        """Token ids of a part of a triplet."""
        prompt, cut = self.prompt(row, part)
        expected = row.expected(part)
        return Encoded(self.ids(prompt), [*self.ids(expected), self.end] if expected else [], cut)


def _takes_system(tokenizer: Any) -> bool:
    """Whether the chat template puts a system message into the prompt."""
    messages = [{"role": "system", "content": "ZZSYSTEMZZ"}, {"role": "user", "content": "Hello"}]
    try:
        return "ZZSYSTEMZZ" in tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except jinja2.TemplateError:  # some templates refuse a system message
        return False


def write_triplet_tokens(path: Path, rows: Sequence[Triplet], encoder: TripletEncoder) -> dict[str, Any]:
    """Write the token ids of all parts to an Arrow stream file; statistics of their lengths and cuts."""
    lengths: dict[str, list[int]] = {f"{part}_{name}": [] for part in PARTS for name in ("prompt", "output")}
    cut = dict.fromkeys(PARTS, 0)
    todo = iter(rows)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, SCHEMA) as writer:
        while batch := list(islice(todo, BATCH)):
            columns: dict[str, list[list[int]]] = {name: [] for name in SCHEMA.names}
            for row in batch:
                for part in PARTS:
                    encoded = encoder.encode(row, part)
                    columns[f"{part}_prompt"].append(encoded.prompt)
                    columns[f"{part}_output"].append(encoded.output)
                    cut[part] += encoded.cut
            writer.write_table(pa.table(columns, schema=SCHEMA))
            for name, values in columns.items():
                lengths[name] += map(len, values)
    return {"tokens": {name: _statistics(values) for name, values in lengths.items()}, "cut": cut}


def _statistics(lengths: list[int]) -> dict[str, float]:
    low, middle, high = np.percentile(lengths, (5, 50, 95))
    return {"least": min(lengths), "p5": low, "median": middle, "p95": high, "most": max(lengths),
            "mean": round(float(np.mean(lengths)), 2)}  # fmt: skip


def collate(
    rows: Sequence[Mapping[str, Sequence[int]]], *, pad: int, parts: Iterable[str], learned: Iterable[str]
) -> dict[str, Any]:
    """One padded batch of the given parts of B triplets: all rows of the first part, then all of the next.

    Prompts end and outputs begin at one column: prompts are padded on the left, outputs on the right. The outputs of
    `learned` parts alone are there. Returns `input_ids`, `attention_mask`, `position_ids` and `labels` (IGNORED but on
    outputs), int64 tensors of shape (parts * B, longest prompt + longest output), and `outputs`, the length of the
    longest output.
    """
    prompts = [row[f"{part}_prompt"] for part in parts for row in rows]
    outputs = [row[f"{part}_output"] if part in learned else [] for part in parts for row in rows]
    width, tail = max(map(len, prompts)), max(map(len, outputs))
    ids = np.full((len(prompts), width + tail), pad, dtype=np.int64)
    mask, labels = np.zeros_like(ids), np.full_like(ids, IGNORED)
    for index, (prompt, output) in enumerate(zip(prompts, outputs, strict=True)):
        first, last = width - len(prompt), width + len(output)
        ids[index, first:width], ids[index, width:last] = prompt, output
        labels[index, width:last] = output
        mask[index, first:last] = 1
    positions = np.maximum(mask.cumsum(axis=1) - 1, 0)
    arrays = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "labels": labels}
    return {**{name: torch.from_numpy(array) for name, array in arrays.items()}, "outputs": tail}
