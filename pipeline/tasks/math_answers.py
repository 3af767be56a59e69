"""Final answers of mathematics: found in a completion, compared with a reference by value (math-verify)."""

from __future__ import annotations

import logging
import re
from fractions import Fraction
from functools import lru_cache
from typing import Any

from pipeline.tasks.score import Score

_NUMBER = re.compile(
    r"(?P<sign>[-−+]?)\s*[$€£]?\s*(?P<sign2>[-−]?)(?P<digits>(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?)"
    r"(?:\s*%|(?=[.,;:!?]?\s*$)|\s+[^\d\s=+*/^<>\\(\[{-][^\d=+*/^<>\\]*$)[.,;:!?]?"
)
"""A number, maybe of money or per cent, and then nothing but a unit: words without a further digit."""

_HASHES = re.compile(r"^[^\S\n]*####[^\S\n]*(?P<answer>[^\n#]*\S)[^\S\n]*$", re.MULTILINE)
_HEADING = re.compile(r"(?:\d+\s*[.):]\s+)?[^\W\d_]{2,}")
"""What makes `#### ...` a heading of Markdown: a word, or a number of a list before one."""

_DELIMITED = re.compile(r"(?<!\\)\$|\\boxed|\\\(|\\\[|\\begin\{(?:equation|align|displaymath)")
LONGEST = 8000
"""Characters from the end in which a final answer is looked for."""
SECONDS = 3
"""How long math-verify may parse one text or compare two answers; what takes longer is no answer."""


def final_part(completion: str) -> str:
    """What follows the thinking of a completion; what precedes it where the thinking never ends."""
    text = re.split(r"</think(?:ing)?>", completion, flags=re.IGNORECASE)[-1]
    return re.split(r"<think(?:ing)?>", text, flags=re.IGNORECASE)[0]


def after_hashes(text: str) -> str | None:
    """The answer on the first line `#### answer`, as GSM8K writes it; None without one. Headings are passed over."""
    lines = (found["answer"] for found in _HASHES.finditer(text))
    return next((answer for answer in lines if not _HEADING.match(answer)), None)


def number(text: str) -> Fraction | None:
    """The value of a text that is one number: `1,000`, `$5.00`, `-3`, `40%` (40), `18 dollars`; None for any other."""
    found = _NUMBER.fullmatch(text.strip().strip("*`").strip())
    if found is None or not found["digits"] or (found["sign"] and found["sign2"]):
        return None
    value = Fraction(found["digits"].replace(",", ""))
    return value if (found["sign"] or found["sign2"]) in ("", "+") else -value


_WORDS = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}")


def readable(text: str) -> str:
    """A completion as math-verify shall read it: one that is a formula alone, without delimiters, gets them."""
    alone = text.strip()
    bare = alone and "\n" not in alone and not _DELIMITED.search(alone) and not _WORDS.search(alone)
    return f"${alone}$" if bare else text


@lru_cache(maxsize=4096)
def parse(text: str) -> tuple[Any, ...]:
    """What math-verify reads in a text: the value (sympy) of the final answer and its wording; () where it finds none.

    Its time limit needs the main thread of the process.
    """
    from math_verify import parse as read

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it would print whole completions that took too long
    return tuple(read(text, parsing_timeout=SECONDS))


def same(reference: tuple[Any, ...], answer: tuple[Any, ...]) -> bool:
    """Whether math-verify finds two parsed answers equal; which one is the reference matters to it."""
    from math_verify import verify

    return bool(verify(list(reference), list(answer), timeout_seconds=SECONDS))


def delimited(answer: str) -> str:
    """A reference answer as LaTeX between delimiters, where it has none itself."""
    plain = answer.replace("{,}", ",").replace("{}", "").removeprefix("\\approx")
    return answer if _DELIMITED.search(answer) else f"${plain}$"


def grade(completion: str, reference: str | None) -> Score:
    """Judge the final answer of a completion: after `####`, in `\\boxed{}`, after `answer is`, or the last formula.

    `reference` is the right answer as plain text or LaTeX; None where the row states none. `correct` is None when it
    cannot be read; an answer that cannot be found is incorrect.
    """
    if reference is None or not reference.strip():
        return Score(None, None, "the row states no answer")
    text = final_part(completion)[-LONGEST:]
    stated = after_hashes(text)
    wanted, given = number(reference), number(stated) if stated else None
    if wanted is not None and given is not None:
        return _score(wanted == given, str(stated), reference)
    gold = parse(delimited(reference))
    if not gold or isinstance(gold[0], str):
        return Score(None, stated, f"the reference {reference[:60]!r} cannot be read as mathematics")
    found = parse(delimited(stated) if stated else readable(text))
    if not found or not re.search(r"\w", str(found[-1])):
        return Score(False, None, "no answer could be found")
    return _score(same(gold, found), str(found[-1]), reference, parts_right(gold[0], found[0]))


def _score(right: bool, answer: str, reference: str, share: float = 0.0) -> Score:
    return Score(right, answer, f"answered {answer[:60]}, the reference is {reference[:60]}", 1.0 if right else share)


def parts_right(reference: Any, answer: Any) -> float:
    """Share of the parts of a tuple (by place) or a set (by value) that an answer of the same kind has right.

    A set is measured against the larger of the two, so that naming many values gains nothing. 0 for single values.
    """
    from sympy import Tuple
    from sympy.sets.sets import FiniteSet

    if isinstance(reference, Tuple) and isinstance(answer, Tuple) and len(reference) == len(answer):
        return sum(same((one,), (two,)) for one, two in zip(reference, answer, strict=True)) / len(reference)
    if isinstance(reference, FiniteSet) and isinstance(answer, FiniteSet) and len(answer) <= 2 * len(reference):
        right = sum(any(same((one,), (two,)) for two in answer) for one in reference)
        return right / max(len(reference), len(answer))
    return 0.0
