"""What a published row asks and how it is answered, and the templates that make prompts and completions of it."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Example:
    """One row of a data set, understood."""

    question: str
    solution: str | None = None
    """A worked solution to learn from, without the final answer where the row marks that one apart."""
    answer: str | None = None
    """The final answer alone; None where the solution states it, or where there is none."""


@dataclass(frozen=True)
class Template:
    """The wording of prompts, and of the final answer in completions."""

    prompt: str
    final: str = "{answer}"


TEMPLATES = {
    "plain": Template("{question}"),
    "math_cot": Template(
        "{question}\n\nThink step by step, then write the final answer inside \\boxed{{}}.", "\\boxed{{{answer}}}"
    ),
    "math_hash": Template(
        "{question}\n\nThink step by step, then write the final answer alone on a last line that begins with ####.",
        "#### {answer}",
    ),
    "math_answer": Template("{question}\n\nWrite only the final answer inside \\boxed{{}}.", "\\boxed{{{answer}}}"),
    "code_block": Template("{question}\n\nAnswer with one complete program in a ```python block."),
}
"""Prompt templates by the name that `data.template` gives. `math_answer` asks for no reasoning."""


def prompt_text(example: Example, template: str) -> str:
    """The user message of an example."""
    return TEMPLATES[template].prompt.format(question=example.question)


def completion_text(example: Example, template: str) -> str | None:
    """What SFT teaches: the solution, and then the final answer worded as the template asks; None without either."""
    final = TEMPLATES[template].final.format(answer=example.answer) if example.answer is not None else ""
    solution = "" if template == "math_answer" and final else example.solution or ""
    return "\n".join(part for part in (solution, final) if part) or None


_FORMS = {
    "math_cot": re.compile(r"\\boxed\{.+\}\W*\Z", re.DOTALL),
    "math_answer": re.compile(r"\s*\\boxed\{.+\}\W*\Z", re.DOTALL),
    "math_hash": re.compile(r"^#### *\S[^\n]*\s*\Z", re.MULTILINE),
    "code_block": re.compile(r"^```python\n.*^```\s*\Z", re.MULTILINE | re.DOTALL),
}


def has_form(completion: str, template: str) -> bool:
    """Whether a completion ends in its answer, worded as its template asks; always so where it asks for nothing."""
    form = _FORMS.get(template)
    return form is None or bool(form.search(completion))
