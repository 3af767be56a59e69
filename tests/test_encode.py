"""Tokens put together from parts are those of the whole text, for tokenizers of every kind, and get to disk whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import settings as example_settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from pipeline.causal.generate import sample
from pipeline.causal.trace import Style
from pipeline.recipe import ScratchModel
from pipeline.tasks.corr2cause import message, worked
from pipeline.training import encode as encode_module
from pipeline.training import scratch
from pipeline.training.encode import BATCH, IGNORED, Encoder, encode, token_counts, write_encoded
from pipeline.training.models import render_prompt, render_prompts

ROWS = sample("train", [3, 4, 5], 200, 1)
MESSAGES = [message(row.premise, row.hypothesis, ("default", "paper")[i % 2]) for i, row in enumerate(ROWS)]
STYLES: tuple[Style, ...] = ("full", "short", "answer")
COMPLETIONS = [worked(row.premise, row.hypothesis, STYLES[i % 3]) for i, row in enumerate(ROWS)]
TEXTS = [*MESSAGES, *COMPLETIONS]
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Pre-tokens of today's byte-level vocabularies."""
TRIMMED = scratch.CHAT_TEMPLATE.replace("message['content']", "message['content'] | trim")
LOOKS_INSIDE = scratch.CHAT_TEMPLATE.replace("message['content']", "message['content'].replace('collider', 'C')")


def trained(pre_tokenizer: Any, normalizer: Any = None, alphabet: bool = True) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    letters = pre_tokenizers.ByteLevel.alphabet() if alphabet else sorted({c for text in TEXTS for c in text})
    trainer = trainers.BpeTrainer(vocab_size=900, initial_alphabet=letters, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def scratch_tokenizer(split: str) -> Any:
    return scratch.train_tokenizer(
        ScratchModel.model_validate({"tokenizer": {"split": split, "vocab_size": 900}}), TEXTS
    )


def byte_level() -> Tokenizer:
    pieces = [
        pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    tokenizer = trained(pre_tokenizers.Sequence(pieces), normalizers.NFC())
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def sentence_piece() -> Tokenizer:
    """Words learned apart, text then merged as one, with a space put before its start: the Llama 2 and Phi-3 kind."""
    tokenizer = trained(pre_tokenizers.Metaspace(prepend_scheme="first"), alphabet=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return tokenizer


def spanning() -> Tokenizer:
    """Tokens of several words: some hold a stop and the space after it."""
    return trained(pre_tokenizers.Split("\n", behavior="isolated"), alphabet=False)


def sevens() -> Tokenizer:
    """Pre-tokens of seven characters, wherever a statement ends."""
    return trained(pre_tokenizers.Split(Regex(r"[\s\S]{1,7}"), behavior="isolated"), alphabet=False)


def wrapped(tokenizer: Tokenizer) -> Any:
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=scratch.END, pad_token=scratch.PAD)
    fast.add_special_tokens({"additional_special_tokens": scratch.SPECIAL_TOKENS})
    fast.chat_template = scratch.CHAT_TEMPLATE
    return fast


KINDS: dict[str, tuple[Callable[[], Any], bool]] = {
    "statement": (lambda: scratch_tokenizer("statement"), True),
    "edge": (lambda: scratch_tokenizer("edge"), True),
    "word": (lambda: scratch_tokenizer("word"), True),
    "byte_level": (lambda: wrapped(byte_level()), True),
    "sentence_piece": (lambda: wrapped(sentence_piece()), True),
    "spanning": (lambda: wrapped(spanning()), False),
    "sevens": (lambda: wrapped(sevens()), False),
}


@pytest.fixture(scope="module", params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> tuple[Any, bool]:
    """A tokenizer, and whether its texts may be cut."""
    make, cuts = KINDS[request.param]
    return make(), cuts


def plain(tokenizer: Any, prompts: list[str], completions: list[str], end: int) -> dict[str, list[list[int]]]:
    """One row after the other, as `encode` is defined."""
    made: dict[str, list[list[int]]] = {"input_ids": [], "labels": []}
    for prompt, completion in zip(prompts, completions, strict=True):
        asked = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        answered = [*tokenizer(completion, add_special_tokens=False)["input_ids"], end]
        made["input_ids"].append(asked + answered)
        made["labels"].append([IGNORED] * len(asked) + answered)
    return made


def encoded(tokenizer: Any, prompts: list[str], completions: list[str], end: int) -> Any:
    return pa.concat_tables(encode(tokenizer, iter(prompts), completions, end)).to_pydict()


def test_tokens_are_those_of_one_row_at_a_time(kind: tuple[Any, bool]) -> None:
    tokenizer, cuts = kind
    prompts = [render_prompt(tokenizer, text) for text in MESSAGES]
    assert encoded(tokenizer, prompts, COMPLETIONS, 7) == plain(tokenizer, prompts, COMPLETIONS, 7)
    assert Encoder(tokenizer, TEXTS).cuts is cuts


def test_what_one_token_of_a_trace_may_span() -> None:
    def spans(split: str, text: str) -> list[str]:
        cut = scratch_tokenizer(split).backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
        return [text[start:end] for _, (start, end) in cut]

    said = "Edges: A < B; A > C; Paths: A > C < B; Check: unless A > B; Therefore: No"
    first = ["Edges:", " A < B;", " A > C;", " Paths:"]
    last = [" Check:", " unless A > B;", " Therefore:", " No"]
    assert spans("statement", said) == [*first, " A > C < B;", *last]
    assert spans("edge", said) == [*first, " A > C", " < B;", *last]


PIECES = ["A", "Bc", ". A", "; B", ": C", ".", ";", ":", " ", "\n", ". ", "..", "e.g. x", "é", "\u0301", "中", ". 中",
          "<|end|>", ". <|user|>A", "3.5", ". 5", "'s", "\0", "\u2028", "Therefore: Yes", " However, A"]  # fmt: skip


@given(st.lists(st.lists(st.sampled_from(PIECES)).map("".join), min_size=1, max_size=6))
@example_settings(max_examples=150, deadline=None)
def test_any_text_gives_the_tokens_of_the_whole(texts: list[str]) -> None:
    for tokenizer in CUT_TOKENIZERS:
        encoder = Encoder(tokenizer, TEXTS[:4])
        assert encoder.cuts
        whole = tokenizer(texts, add_special_tokens=False)["input_ids"]
        assert [[token for ids in parts for token in ids] for parts in encoder.parts(texts)] == whole


CUT_TOKENIZERS = [scratch_tokenizer("word"), wrapped(byte_level()), wrapped(sentence_piece())]


def test_each_statement_is_tokenized_once() -> None:
    class Counting:
        """A tokenizer that notes what it is asked."""

        def __init__(self) -> None:
            self.asked: list[str] = []

        def get_vocab(self) -> dict[str, int]:
            return {}

        def __call__(self, texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
            self.asked += texts
            return {"input_ids": [[*text.encode()] for text in texts]}

    tokenizer = Counting()
    encoder = Encoder(tokenizer, [])
    tokenizer.asked.clear()
    encoder.parts(["A. B. C", "A. C. B"])
    encoder.parts(["A. B. B"])
    assert sorted(tokenizer.asked) == [". B", ". B.", ". C", ". C.", "A."]


def test_forgotten_parts_are_learned_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = CUT_TOKENIZERS[1]
    monkeypatch.setattr(encode_module, "MOST_PARTS", 10)
    monkeypatch.setattr(encode_module, "BATCH", 16)
    assert encoded(tokenizer, MESSAGES, COMPLETIONS, 7) == plain(tokenizer, MESSAGES, COMPLETIONS, 7)


def test_encoded_rows_get_to_disk_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from datasets import Dataset

    tokenizer = CUT_TOKENIZERS[1]
    prompts, completions = ((texts * 12)[: BATCH + 100] for texts in (MESSAGES, COMPLETIONS))
    path = tmp_path / "a 'b.arrow"
    write_encoded(path, encode(tokenizer, prompts, completions, 7), len(prompts), "sft")
    rows = Dataset.from_file(str(path))
    wanted = plain(tokenizer, prompts, completions, 7)
    assert rows.to_dict() == wanted
    assert token_counts(path).tolist() == [len(ids) for ids in wanted["input_ids"]]
    assert capsys.readouterr().out == ""


def test_progress_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(encode_module, "PROGRESS_SECONDS", -1.0)
    monkeypatch.setattr(encode_module, "BATCH", 150)
    write_encoded(tmp_path / "a.arrow", encode(CUT_TOKENIZERS[0], MESSAGES, COMPLETIONS, 7), 200, "sft")
    assert capsys.readouterr().out == "sft: 150 of 200 rows tokenized\nsft: 200 of 200 rows tokenized\n"


@pytest.mark.parametrize("template", [scratch.CHAT_TEMPLATE, TRIMMED, LOOKS_INSIDE], ids=["plain", "trim", "inside"])
def test_prompts_are_filled_in_as_the_template_renders_them(template: str) -> None:
    tokenizer = scratch_tokenizer("word")
    tokenizer.chat_template = template
    texts = [*MESSAGES, " with space. ", "{{ message }} <|end|>"]
    assert list(render_prompts(tokenizer, texts)) == [render_prompt(tokenizer, text) for text in texts]
