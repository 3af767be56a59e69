"""Claims of a free text about causes: found by their usual wordings, each judged against the premise."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from pipeline.causal import trace
from pipeline.causal.judge import Known, known
from pipeline.causal.solver import answer
from pipeline.causal.text import Parsed
from pipeline.causal.witness import mark

Kind = Literal["adjacent", "not adjacent", "v-structure", "orientation", "path", "section", "conclusion"]

_GRAMMAR: dict[str, Kind] = {
    "Skeleton": "adjacent", "Colliders": "v-structure", "Edges": "orientation", "Paths": "path", "Check": "path",
    "Therefore": "conclusion",
}  # fmt: skip


@dataclass(frozen=True)
class Judged:
    """One claim of a completion."""

    kind: Kind
    text: str
    true: bool
    reason: str
    """Why it is false; `` when it is true."""


_V = r"(?<![\w])({names})(?![\w])"
_TO = r"\s*(?:->|-->|→|⟶|causes|directly causes)\s*"
_FROM = r"\s*(?:<-|<--|←|⟵)\s*"
_EDGE = r"\s*(?:-|--|—|–)\s*"


@lru_cache(maxsize=1 << 8)
def _patterns(names: tuple[str, ...]) -> list[tuple[Kind, re.Pattern[str]]]:
    """The wordings of each kind of claim, the more special ones first."""
    v = _V.replace("{names}", "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True)))
    written: list[tuple[Kind, str]] = [
        ("v-structure", rf"{v}{_TO}{v}{_FROM}{v}"),
        ("v-structure", rf"{v} is a (?:collider|v-structure) (?:between|of|on) {v} and {v}"),
        ("v-structure", rf"{v} and {v} (?:collide|meet) (?:at|in) {v}"),
        ("not adjacent", rf"{v} and {v} are (?:not|non-?) ?(?:directly )?(?:adjacent|connected|linked)"),
        ("not adjacent", rf"{v} is not (?:directly )?(?:adjacent|connected|linked) (?:to|with) {v}"),
        ("not adjacent", rf"(?:no|not an) (?:direct )?(?:edge|link|connection) between {v} and {v}"),
        ("not adjacent", rf"remov\w+ (?:the )?(?:edge|link) (?:between )?{v}(?:{_EDGE}| and ){v}"),
        ("adjacent", rf"{v} and {v} are (?:directly )?(?:adjacent|connected|linked)"),
        ("adjacent", rf"{v} is (?:directly )?(?:adjacent|connected|linked) (?:to|with) {v}"),
        ("adjacent", rf"(?:an?|the) (?:direct )?(?:edge|link|connection) between {v} and {v}"),
        ("orientation", rf"{v}{_TO}{v}"),
        ("orientation", rf"{v}{_FROM}{v}"),
        ("adjacent", rf"{v}{_EDGE}{v}"),
    ]
    return [(kind, re.compile(text)) for kind, text in written]


def check(text: str, row: Parsed) -> list[Judged]:
    """Every claim of a completion, judged true or false of the premise, in the order of the text.

    A completion in the trace grammar (docs/trace.md) is judged statement by statement and section by section. Of any
    other text the claims are found that it words in one of the usual ways: adjacency, v-structures, orientations, and
    `Therefore: Yes` or `No`; what it does not word so is passed over. Raises NoDag when no DAG satisfies the premise.
    """
    if any(each.head != trace.HEADS[-1] for each in trace.read(text)):
        return [_from_grammar(each) for each in trace.check(text, row)]
    return [*_free(text, row, known(row.premise)), *_conclusion(text, row)]


def _from_grammar(verdict: trace.Verdict) -> Judged:
    kind = _GRAMMAR[verdict.head]
    if verdict.claim == "order" or verdict.claim.endswith(":"):
        kind = "section" if verdict.head != trace.HEADS[-1] else kind
    elif verdict.head == "Skeleton" and " given " in verdict.claim:
        kind = "not adjacent"
    return Judged(kind, verdict.claim, verdict.holds, verdict.reason)


def _free(text: str, row: Parsed, facts: Known) -> list[Judged]:
    found: list[tuple[int, Judged]] = []
    left = text
    for kind, pattern in _patterns(row.premise.names):
        for match in pattern.finditer(left):
            places = [facts.places[name] for name in match.groups()]
            if len(set(places)) == len(places):
                reason = _fault(kind, match, places, facts)
                found.append((match.start(), Judged(kind, " ".join(match[0].split()), not reason, reason)))
        left = pattern.sub(lambda match: "\n" * len(match[0]), left)
    return [judged for _, judged in sorted(found, key=lambda each: each[0])]


def _fault(kind: Kind, match: re.Match[str], places: list[int], facts: Known) -> str:
    if kind == "v-structure":
        x, z, y = places if re.search(_FROM, match[0]) else _named_collider(match[0], places)
        return "" if (min(x, y), z, max(x, y)) in facts.colliders else "no v-structure of the premise"
    x, y = places
    stands = mark(facts.graph, x, y)
    if kind == "adjacent":
        return "" if stands else "the premise separates them"
    if kind == "not adjacent":
        return "the premise does not separate them" if stands else ""
    wanted = "<" if re.search(_FROM, match[0]) else ">"
    if stands == wanted:
        return ""
    return "the premise leaves the direction open" if stands == "-" else f"it is {stands or 'no edge'}"


def _named_collider(text: str, places: list[int]) -> tuple[int, int, int]:
    """`Z is a collider between X and Y` names Z first, `X and Y collide at Z` last."""
    first, second, third = places
    return (second, first, third) if " is a " in text else (first, third, second)


def _conclusion(text: str, row: Parsed) -> list[Judged]:
    told = re.findall(r"[Tt]herefore\W+(Yes|No)\b", text)
    if not told:
        return []
    right = "Yes" if answer(row).label else "No"
    fits = told[-1] == right
    return [Judged("conclusion", f"Therefore: {told[-1]}", fits, "" if fits else "the premise shows the opposite")]
