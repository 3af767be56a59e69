"""Traces, the worked reasoning from a premise to an answer: write, read and check. The grammar is docs/trace.md."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from pipeline.causal import witness
from pipeline.causal.equivalence import colliders
from pipeline.causal.graphs import Graph, pairs
from pipeline.causal.judge import Judge, known
from pipeline.causal.solver import separating_sets, solve
from pipeline.causal.text import ANSWERS, Parsed, Premise, join

Style = Literal["full", "short", "answer"]
"""`full` names a separating set of every pair and every edge; `short` leaves both out; `answer` is the last line."""

HEADS = ("Skeleton", "Colliders", "Edges", "Paths", "Check", "Therefore")

_HEAD = re.compile(rf"\b({'|'.join(HEADS)}):")
_SHOWN = {"full": ("<", ">", "-"), "short": ("<", ">")}


class Claim(NamedTuple):
    """One statement of a trace, as it stands under its head."""

    head: str
    text: str


class Verdict(NamedTuple):
    """Whether one statement, or one section as a whole (claim `Edges:`), is true; if not, why."""

    head: str
    claim: str
    holds: bool
    reason: str = ""


def write(row: Parsed, style: Style = "full") -> str:
    """The trace of a row, on one line. Raises UserError when no DAG satisfies the premise."""
    graph, names = solve(row.premise), row.premise.names
    found = witness.find(graph, row.hypothesis)
    answer = f"Therefore: {'Yes' if witness.settles(graph, row.hypothesis, found) else 'No'}"
    if style == "answer":
        return answer
    sections = {
        "Skeleton": _skeleton(graph, row.premise, style),
        "Colliders": [_path(graph, each, names) for each in sorted(colliders(graph))],
        "Edges": [
            _path(graph, pair, names) for pair in pairs(len(graph)) if witness.mark(graph, *pair) in _SHOWN[style]
        ],
        "Paths": [_path(graph, each, names) for each in witness.short_paths(graph, row.hypothesis)],
        "Check": _check_section(graph, found, names),
    }
    return " ".join((*(f"{head}: {'; '.join(each or ['none'])};" for head, each in sections.items()), answer))


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


def _check_section(graph: Graph, found: witness.Witness, names: tuple[str, ...]) -> list[str]:
    undone = [f"unless {names[a]} > {names[b]}" for a, b in found.arrows]
    return [_path(graph, path, names) for path in found.paths] + undone


def read(text: str) -> tuple[Claim, ...]:
    """The statements of a completion in order; a head alone is a claim with the text ``.

    Text before the first head and after the answer is passed over. Nothing is judged and nothing raised.
    """
    pieces = _HEAD.split(" ".join(text.split()))[1:]
    claims: list[Claim] = []
    for head, body in zip(pieces[::2], pieces[1::2], strict=True):
        claims.append(Claim(head, ""))
        if head == HEADS[-1]:
            claims += [Claim(head, word) for word in re.findall(r"\w+", body)[:1]]
        else:
            claims += [Claim(head, bare) for each in body.split(";") if (bare := each.strip())]
    return tuple(claims)


def check(text: str, row: Parsed) -> list[Verdict]:
    """A verdict on every statement, on every section as a whole and on the answer.

    A section holds when all that it must list is there (skeleton: the adjacent pairs; colliders: the v-structures;
    edges: the directed ones; check: what settles the hypothesis). The answer holds when it follows from a check
    section that is true, so it is then right. Whatever does not parse is false, with a reason; nothing is raised for
    the text. Raises UserError when no DAG satisfies the premise.
    """
    facts = known(row.premise)
    sections: dict[str, list[str]] = {}
    verdicts: list[Verdict] = []
    for claim in read(text):
        if claim.text:
            sections[claim.head].append(claim.text)
        elif sections.setdefault(claim.head, []) or claim.head != list(sections)[-1]:
            verdicts.append(Verdict(claim.head, f"{claim.head}:", False, "the section stands twice"))
    if list(sections) != [head for head in HEADS if head in sections]:
        verdicts.append(Verdict(HEADS[0], "order", False, f"the sections are {', '.join(HEADS)}"))
    for head in HEADS[:-1]:
        judge = Judge(facts, row.hypothesis)
        verdicts += _section(head, sections.get(head), judge)
    outcome = judge.outcome() if all(each.holds for each in verdicts if each.head == HEADS[-2]) else None
    return [*verdicts, _answer(sections.get(HEADS[-1], []), outcome)]


def _section(head: str, statements: list[str] | None, judge: Judge) -> list[Verdict]:
    """Verdicts on the statements of a section and on the whole; `none` says that there is nothing to list."""
    if not statements:
        return [Verdict(head, f"{head}:", False, "the section is missing or empty")]
    if statements == ["none"]:
        reason = judge.whole(head)
        return [Verdict(head, each, not reason, reason) for each in (f"{head}:", "none")]
    verdicts = []
    for each in statements:
        reason = judge.statement(head, each)
        verdicts.append(Verdict(head, each, not reason, reason))
    sound = all(each.holds for each in verdicts)
    reason = judge.whole(head) if sound or head != "Check" else "a statement of it is false"
    return [Verdict(head, f"{head}:", not reason, reason), *verdicts]


def _answer(words: list[str], outcome: int | None) -> Verdict:
    """The last step: it must follow from the check section, which settles the hypothesis to be `outcome`."""
    head = HEADS[-1]
    if words not in ([ANSWERS[0]], [ANSWERS[1]]):
        reason = f"the answer is {' or '.join(ANSWERS)}"
    elif outcome is None:
        reason = "no true check section settles it"
    else:
        reason = "" if words == [ANSWERS[outcome]] else "the check section shows the opposite"
    return Verdict(head, f"{head}: {' '.join(words)}".strip(), not reason, reason)
