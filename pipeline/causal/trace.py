"""Traces, the worked reasoning from a premise to an answer: write, read and check. The grammar is docs/trace.md."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

from pipeline.causal import witness
from pipeline.causal.dseparation import Independence
from pipeline.causal.equivalence import Collider, colliders
from pipeline.causal.graphs import Graph, pairs
from pipeline.causal.relations import Hypothesis, Relation, label
from pipeline.causal.solver import separating_sets, solve
from pipeline.causal.text import ANSWERS, Parsed, Premise, join

Style = Literal["full", "short", "answer"]
"""`full` names a separating set of every pair and every edge; `short` leaves both out; `answer` is the last line."""

HEADS = ("Skeleton", "Colliders", "Edges", "Check", "Therefore")

_HEAD = re.compile(rf"\b({'|'.join(HEADS)}):")
_PATH = re.compile(r"([^\s,;]+)((?: [<>-] [^\s,;]+)+)")
_SEPARATED = re.compile(r"([^\s,;]+), ([^\s,;]+) given ([^;]+)")


@dataclass(frozen=True)
class Claim:
    """One statement of a trace, as it stands under its head."""

    head: str
    text: str


@dataclass(frozen=True)
class Verdict:
    """Whether one statement, or one section as a whole (claim `Edges:`), is true; if not, why."""

    claim: str
    holds: bool
    reason: str = ""


def write(row: Parsed, style: Style = "full") -> str:
    """The trace of a row, on one line. Raises UserError when no DAG satisfies the premise."""
    graph, names = solve(row.premise), row.premise.names
    answer = f"Therefore: {ANSWERS[label(graph, row.hypothesis)]}"
    if style == "answer":
        return answer
    sections = (
        _skeleton(graph, row.premise, style),
        [_path(graph, each, names) for each in sorted(colliders(graph))],
        [_path(graph, pair, names) for pair in pairs(len(graph)) if witness.mark(graph, *pair) in _SHOWN[style]],
        _check_section(graph, row.hypothesis, names),
    )
    lines = (f"{head}: {'; '.join(each or ['none'])};" for head, each in zip(HEADS, sections, strict=False))
    return " ".join((*lines, answer))


_SHOWN = {"full": ("<", ">", "-"), "short": ("<", ">")}


def _skeleton(graph: Graph, premise: Premise, style: Style) -> list[str]:
    separated = separating_sets(premise.independences)
    names = premise.names
    statements = []
    for x, y in pairs(len(graph)):
        if (x, y) not in separated:
            statements.append(f"{names[x]} - {names[y]}")
        elif style == "full":
            given = join([names[z] for z in separated[x, y]]) or "nothing"
            statements.append(f"{names[x]}, {names[y]} given {given}")
    return statements


def _path(graph: Graph, path: witness.Path, names: tuple[str, ...]) -> str:
    steps = zip(witness.marks(graph, path), path[1:], strict=True)
    return names[path[0]] + "".join(f" {mark} {names[node]}" for mark, node in steps)


def _check_section(graph: Graph, hypothesis: Hypothesis, names: tuple[str, ...]) -> list[str]:
    found = witness.find(graph, hypothesis)
    return [_path(graph, path, names) for path in found.paths] + [
        f"unless {names[a]} > {names[b]}" for a, b in found.arrows
    ]


def read(text: str) -> tuple[Claim, ...]:
    """The statements of a completion in order; a head alone is a claim with the text ``.

    Text before the first head and after the answer is passed over. Nothing is judged and nothing raised.
    """
    pieces = _HEAD.split(text)[1:]
    claims: list[Claim] = []
    for head, body in zip(pieces[::2], pieces[1::2], strict=True):
        claims.append(Claim(head, ""))
        if head == HEADS[-1]:
            claims += [Claim(head, word.strip(".")) for word in body.split()[:1]]
        else:
            claims += [Claim(head, " ".join(each.split())) for each in body.split(";") if each.strip()]
    return tuple(claims)


@dataclass
class _Facts:
    """What is true of a premise, and what the trace has said so far."""

    names: dict[str, int]
    graph: Graph
    colliders: frozenset[Collider]
    independences: frozenset[Independence]
    hypothesis: Hypothesis
    said: set[object] = field(default_factory=set)
    paths: list[witness.Path] = field(default_factory=list)
    arrows: list[witness.Arrow] = field(default_factory=list)
    outcome: int | None = None


@lru_cache(maxsize=1 << 12)
def _known(premise: Premise) -> tuple[dict[str, int], Graph, frozenset[Collider], frozenset[Independence]]:
    graph = solve(premise)
    places = {name: place for place, name in enumerate(premise.names)}
    return places, graph, colliders(graph), frozenset(premise.independences)


def check(text: str, row: Parsed) -> list[Verdict]:
    """A verdict on every statement, on every section as a whole and on the answer, in the order of the text.

    A section holds when all that it must list is there (skeleton: the adjacent pairs; colliders: the v-structures;
    edges: the directed ones; check: what settles the hypothesis). `Therefore:` holds when the answer follows from a
    check section that is true, so it is then right. What does not parse is false, with a reason; nothing is raised
    for the text. Raises UserError when no DAG satisfies the premise.
    """
    facts = _Facts(*_known(row.premise), row.hypothesis)
    sections: dict[str, list[str]] = {}
    verdicts: list[Verdict] = []
    for claim in read(text):
        if not claim.text and claim.head in sections:
            verdicts.append(Verdict(f"{claim.head}:", False, "the section stands twice"))
        sections.setdefault(claim.head, []).extend(filter(None, [claim.text]))
    if list(sections) != [head for head in HEADS if head in sections]:
        verdicts.append(Verdict("order", False, f"the sections are {', '.join(HEADS)}"))
    for head in HEADS:
        if head not in sections:
            verdicts.append(Verdict(f"{head}:", False, "the section is missing"))
        else:
            verdicts += _section(head, sections[head], facts)
    return verdicts


def _section(head: str, statements: list[str], facts: _Facts) -> Iterable[Verdict]:
    facts.said.clear()
    if head == "Therefore":
        reason = _answer(facts, statements)
        return [Verdict(f"{head}: {' '.join(statements)}".strip(), not reason, reason)]
    judge, whole = _JUDGES[head]
    reasons = [(each, "" if each == "none" else judge(facts, each)) for each in statements]
    missing = "`none` beside others" if "none" in statements and len(statements) > 1 else ""
    missing = missing or ("nothing is said" if not statements else whole(facts, all(not reason for _, reason in reasons)))
    return [*(Verdict(each, not reason, reason) for each, reason in reasons), Verdict(f"{head}:", not missing, missing)]


def _say(facts: _Facts, key: object) -> str:
    if key in facts.said:
        return "said before"
    facts.said.add(key)
    return ""


def _read_path(facts: _Facts, text: str) -> tuple[witness.Path, str] | None:
    match = _PATH.fullmatch(text)
    if match is None:
        return None
    names = [match[1], *match[2].split()[1::2]]
    if not set(names) <= facts.names.keys() or len(set(names)) < len(names):
        return None
    return tuple(facts.names[name] for name in names), "".join(match[2].split()[::2])


_FORM = "not a statement of this section, or not about different variables of the premise"


def _judge_skeleton(facts: _Facts, text: str) -> str:
    if match := _SEPARATED.fullmatch(text):
        given = [] if match[3] == "nothing" else re.split(r", | and ", match[3])
        if not {match[1], match[2], *given} <= facts.names.keys():
            return _FORM
        x, y = sorted((facts.names[match[1]], facts.names[match[2]]))
        stated = (x, y, tuple(sorted(facts.names[name] for name in given)))
        return _say(facts, (x, y)) if stated in facts.independences else "the premise does not state it"
    path = _read_path(facts, text)
    if path is None or path[1] != "-":
        return _FORM
    x, y = sorted(path[0])
    return _say(facts, (x, y)) if witness.mark(facts.graph, x, y) else "the premise separates them"


def _judge_collider(facts: _Facts, text: str) -> str:
    path = _read_path(facts, text)
    if path is None or path[1] != "><":
        return _FORM
    x, z, y = path[0]
    key = (min(x, y), z, max(x, y))
    return _say(facts, key) if key in facts.colliders else "no v-structure of the premise"


def _judge_edge(facts: _Facts, text: str) -> str:
    path = _read_path(facts, text)
    if path is None or len(path[0]) != 2:
        return _FORM
    stands = witness.mark(facts.graph, *path[0])
    return _say(facts, frozenset(path[0])) if stands == path[1] else f"it is {stands or 'no edge'}"


def _judge_check(facts: _Facts, text: str) -> str:
    path = _read_path(facts, text.removeprefix("unless "))
    if path is None:
        return _FORM
    nodes, marks = path
    if text.startswith("unless "):
        arrow = (nodes[0], nodes[1])
        if marks != ">" or arrow not in witness.with_arrow(facts.graph):
            return "not a direction of an undirected edge"
        facts.arrows.append(arrow)
        return _say(facts, arrow)
    if witness.marks(facts.graph, nodes) != marks:
        return "the edges do not stand so"
    asked = facts.hypothesis
    if {nodes[0], nodes[-1]} != {asked.x, asked.y} or (asked.relation is Relation.DIRECT and len(nodes) > 2):
        return "not a path that the hypothesis asks for"
    nodes = nodes if nodes[0] == asked.x else nodes[::-1]
    if asked.relation is not Relation.DIRECT and nodes not in witness.showing(facts.graph, asked):
        return "no DAG that fits the premise shows the hypothesis along this path"
    facts.paths.append(nodes)
    return _say(facts, nodes)


def _whole_skeleton(facts: _Facts, _: bool) -> str:
    absent = [pair for pair in pairs(len(facts.graph)) if witness.mark(facts.graph, *pair) and pair not in facts.said]
    return "an adjacent pair is missing" if absent else ""


def _whole_colliders(facts: _Facts, _: bool) -> str:
    return "" if facts.colliders <= facts.said else "a v-structure is missing"


def _whole_edges(facts: _Facts, _: bool) -> str:
    directed = {frozenset(pair) for pair in pairs(len(facts.graph)) if witness.mark(facts.graph, *pair) in _SHOWN["short"]}
    return "" if directed <= facts.said else "a directed edge is missing"


def _whole_check(facts: _Facts, sound: bool) -> str:
    if not sound:
        return "a statement of it is false"
    found = witness.Witness(tuple(facts.paths), tuple(facts.arrows))
    facts.outcome = witness.settles(facts.graph, facts.hypothesis, found)
    return "" if facts.outcome is not None else "it does not settle the hypothesis"


def _answer(facts: _Facts, words: list[str]) -> str:
    if words not in ([ANSWERS[0]], [ANSWERS[1]]):
        return "the answer is Yes or No"
    if facts.outcome is None:
        return "the check does not settle it"
    return "" if words == [ANSWERS[facts.outcome]] else "the check shows the opposite"


_JUDGES: dict[str, tuple[Callable[[_Facts, str], str], Callable[[_Facts, bool], str]]] = {
    "Skeleton": (_judge_skeleton, _whole_skeleton),
    "Colliders": (_judge_collider, _whole_colliders),
    "Edges": (_judge_edge, _whole_edges),
    "Check": (_judge_check, _whole_check),
}
