"""The answer, yes or no, that a completion finally states, whatever form it has."""

from __future__ import annotations

import re
import unicodedata
from typing import Literal

Answer = Literal["yes", "no"]

_INVISIBLE = {ord(char): None for char in "\u200b\u200c\u200d\u2060\ufeff\u00ad"}
_ORNAMENTS = [
    (re.compile(r"~~.*?~~", re.DOTALL), " "),  # struck out: taken back
    (re.compile(r"[’‘ʼ]"), "'"),
    (re.compile(r"n't\b", re.IGNORECASE), " not"),
    (re.compile(r"</?(?:b|br|code|div|em|i|p|span|strong|u)\b[^<>]*>", re.IGNORECASE), " "),
    (re.compile(r"\\(?:text|math)[a-z]*"), " "),  # LaTeX's text around an answer
    (re.compile(r"[*_`\\]"), " "),
]

_AFTER_NO = (
    "and|as|because|but|due|for|given|hence|i|if|is|it|no|not|nothing|or|since|so|that|the|there|therefore|these|they|"
    "this|thus|we|when|which|while|yes"
)
_WORD = rf"\b(?:yes|no(?!\.\d|[^\S\n]+(?!(?:{_AFTER_NO})\b)(?-i:[a-z]{{2,}}|[A-Z]{{2,}}\b)))\b(?!-\w)"
"""`no` before another word, as in `no path` or `no DAG`, negates that word and answers nothing; nor does `no-one`."""

_USED = r"(?!\W*\?|\s+(?:if|unless|is(?! the| my)|would|could|cannot|can|requires|needs|when)\b)"
"""What follows an answer that is asked for or talked about: `yes?`, `yes if B is a cause`, `yes would be wrong`."""

_FILLER = (
    r"(?:\W|\b(?:a|an|be|certainly|clearly|definitely|final|get|has|have|here|i|indeed|is|it|just|likely|most|must|my|"
    r"only|our|probably|remains|say|should|simply|still|surely|that|the|then|this|to|was|we|with|would)\b)*?"
)
_STATED = re.compile(
    r"\b(?:therefore|thus|hence|answer|conclusion|conclude|verdict|decision|correction|judge?ment|f?box(?:ed)?)s?\b"
    rf"(?: to\b[^.:;?!\n]{{1,120}}?(?=\bis\b))?{_FILLER}"
    rf"(?P<negated>\b(?:not|never|cannot)\b{_FILLER})?(?P<word>{_WORD}){_USED}",
    re.IGNORECASE,
)
_SAID = re.compile(
    rf"\b(?:actually|finally|i mean|instead|rather|so|sorry|ultimately|wait)\W+(?P<word>{_WORD})\s*(?:[.!。]|$)",
    re.IGNORECASE | re.MULTILINE,
)
_CORRECTED = re.compile(rf"\W*(?:\b(?:but|instead|is|it|rather|s)\b\W*)+(?P<word>{_WORD}){_USED}", re.IGNORECASE)
"""What follows a negated answer that is put right at once: `not yes but no`."""

_NOT_MEANT = re.compile(
    r"\b(?:if|whether|unless|when|suppose|supposing|assume|assuming|imagine|doubt|had|not|cannot|could|may|might|"
    r"not (?:think|believe|say|mean|true|imply|sure|certain|clear|the case)|(?:may|might|would) (?:argue|say|think)|"
    r"(?:at first|first|initially|originally) (?:believed|guessed|said|thought))\s+"
    r"(?:(?:if|whether|that|the|my|our|an|final|correct|right|true)\s+)*\Z",
    re.IGNORECASE,
)
_LOOKED_BACK = 60
"""Characters before a statement in which `if` or `I do not think that` would take it back."""
_SUPPOSED = re.compile(r"\bif\b[^.!?;\n]*\Z", re.IGNORECASE)
_WOULD = re.compile(r"\bwould be\b", re.IGNORECASE)
"""`if C were removed the answer would be no` is about another question."""

_OR = r"[^\w\n]{0,4}(?:\b(?:or|and|nor)\b|[-–—/|,&])[^\w\n]{0,4}"
_BOTH = re.compile(rf"\byes{_OR}{_WORD}(?<=no)|\bno{_OR}yes\b", re.IGNORECASE)
"""`yes or no`, `Yes/No`: the question repeated, or no decision."""

_ALONE = re.compile(rf"^[^\w\n]*(?P<word>{_WORD})[^\w\n]*$", re.IGNORECASE | re.MULTILINE)
_LAST = re.compile(rf"(?:[.!?。]|[^\x00-\x7f]\s*:)\W{{0,9}}(?P<word>{_WORD})[^\w?]*\Z", re.IGNORECASE)
_FIRST = re.compile(rf"\A\W*(?P<word>{_WORD}){_USED}", re.IGNORECASE)

_NEXT = re.compile(r"^[^\w\n]*(?:question|premise|premise and hypothesis|user|human)\s*:", re.IGNORECASE | re.MULTILINE)
"""Where a completion repeats its question, or runs on to another one after its answer."""


def parse_answer(completion: str) -> Answer | None:
    """Yes or No as the completion finally states it, or None when it states neither.

    Reasoning between think tags is passed over, also when the tag is never closed. Of answers that are stated
    (`Therefore: Yes`, `the answer is no`, JSON, a box, a tag) the last one counts, and a negated one takes it back;
    without any, a line or a last sentence that is the word alone, then a text that begins with the word.
    """
    text = re.split(r"</think(?:ing)?>", _plain(completion), flags=re.IGNORECASE)[-1]
    text = re.split(r"<think(?:ing)?>", text, flags=re.IGNORECASE)[0]
    found = (_answer_of(_BOTH.sub(" ", part)) for part in _NEXT.split(text))
    return next((answer for answer in found if answer), None)


def _plain(text: str) -> str:
    """Full-width and styled letters as plain ones, without marks that only change how the text looks."""
    text = unicodedata.normalize("NFKC", text).translate(_INVISIBLE)
    for pattern, instead in _ORNAMENTS:
        text = pattern.sub(instead, text)
    return text


def _answer_of(text: str) -> Answer | None:
    stated = [each for form in (_STATED, _SAID) for each in form.finditer(text) if _is_meant(each, text)]
    if stated:
        last = max(stated, key=lambda each: each.end())
        if last.groupdict().get("negated"):
            return _word(_CORRECTED.match(text, last.end()))
        return _word(last)
    alone = list(_ALONE.finditer(text))
    return _word(alone[-1] if alone else _LAST.search(text) or _FIRST.search(text))


def _is_meant(found: re.Match[str], text: str) -> bool:
    before = text[max(0, found.start() - _LOOKED_BACK) : found.start()]
    return not (_NOT_MEANT.search(before) or (_WOULD.search(found[0]) and _SUPPOSED.search(before)))


def _word(found: re.Match[str] | None) -> Answer | None:
    if found is None:
        return None
    return "yes" if found["word"].lower() == "yes" else "no"
