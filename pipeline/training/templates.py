"""Chat templates that a recipe may declare for a base model whose tokenizer has none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.settings import nearest, read_text

_HEADED = "{%% for m in messages %%}%s{%% endfor %%}{%% if add_generation_prompt %%}%s{%% endif %%}"
TEMPLATES = {
    "chatml": _HEADED % ("<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n", "<|im_start|>assistant\n"),
    "llama2": (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('system text goes into the user turn') }}"
        "{% elif m.role == 'user' %}{{ bos_token }}[INST] {{ m.content }} [/INST]"
        "{% else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}"
    ),
    "llama3": "{{ bos_token }}"
    + _HEADED
    % (
        "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content }}<|eot_id|>",
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "phi3": _HEADED % ("<|{{ m.role }}|>\n{{ m.content }}<|end|>\n", "<|assistant|>\n"),
    "plain": (
        "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% else %}\n\n{% endif %}"
        "{% endfor %}"
    ),
}
"""In the formats that these families of models were tuned with; `plain` needs no token of its own."""
MARKS = {
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "llama3": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "phi3": ("<|user|>", "<|assistant|>", "<|end|>"),
}
"""Tokens that the vocabulary must have: as several ordinary ones they would be no end of a turn."""


def declare(tokenizer: Any, word: str) -> None:
    """Give a tokenizer the template of this name or in this Jinja file.

    Raises UserError for an unknown name, and when the vocabulary lacks a mark of the template.
    """
    if word.endswith((".jinja", ".jinja2", ".j2")):
        tokenizer.chat_template = read_text(Path(word))
        return
    if word not in TEMPLATES:
        raise UserError("unknown chat template", value=word, where="model.chat_template",
                        do=f"{nearest(word, TEMPLATES)}; or the path of a .jinja file")  # fmt: skip
    lacking = [mark for mark in MARKS.get(word, ()) if mark not in tokenizer.get_vocab()]
    if lacking:
        raise UserError(f"the vocabulary has no token for {', '.join(lacking)}", value=word,
                        where="model.chat_template", do="use plain or llama2, which need none")  # fmt: skip
    tokenizer.chat_template = TEMPLATES[word]
