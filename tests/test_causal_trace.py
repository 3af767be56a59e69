"""Traces: every written claim is true, every planted change is caught, nothing that is read raises."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from functools import cache
from itertools import combinations, pairwise, permutations
from pathlib import Path

import pytest
from enumerated import labelled_dags
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.causal.classes import classes
from pipeline.causal.dseparation import independences
from pipeline.causal.equivalence import cpdag, members
from pipeline.causal.graphs import Graph, relabel
from pipeline.causal.implied import label
from pipeline.causal.relations import Hypothesis, Relation, hypotheses
from pipeline.causal.solver import solve
from pipeline.causal.text import Parsed, letters, read_premise, read_row, write_premise
from pipeline.causal.trace import HEADS, Style, check, read, write

PAGE = Path(__file__).parent.parent / "docs/trace.md"
STYLES: tuple[Style, ...] = ("full", "short")


def rows_of(graph: Graph) -> Iterator[Parsed]:
    names = letters(len(graph))
    premise = read_premise(write_premise(independences(members(graph)[0]), names))
    yield from (Parsed(premise, asked) for asked in hypotheses(len(graph)))


@cache
def all_rows(n: int) -> list[Parsed]:
    """Every hypothesis about every labelled class up to four variables; at five one renaming of each class."""
    rng = random.Random(n)
    graphs = (
        dict.fromkeys(cpdag(dag) for dag in labelled_dags(n))
        if n < 5
        else [relabel(each.cpdag, rng.sample(range(n), n)) for each in classes(n)]
    )
    return [row for graph in graphs for row in rows_of(graph)]


def faults(text: str, row: Parsed) -> list[str]:
    return [f"{each.claim}: {each.reason}" for each in check(text, row) if not each.holds]


@pytest.mark.parametrize("n", [2, 3, 4, 5])
@pytest.mark.parametrize("style", STYLES)
def test_every_written_claim_is_true(n: int, style: Style) -> None:
    for row in all_rows(n):
        text = write(row, style)
        assert faults(text, row) == []
        assert text.endswith(f"Therefore: {('No', 'Yes')[label(solve(row.premise), row.hypothesis)]}")
        assert text.endswith(write(row, "answer"))


def test_traces_are_short() -> None:
    lengths = [len(re.findall(r"[;:]", write(row))) for row in all_rows(5)]
    assert sum(lengths) / len(lengths) < 28


def bodies(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for claim in read(text):
        found.setdefault(claim.head, []).extend(filter(None, [claim.text]))
    return found


def put(sections: dict[str, list[str]], head: str, statements: list[str]) -> str:
    changed = {**sections, head: statements}
    answer = changed.pop("Therefore")
    return " ".join(f"{each}: {'; '.join(said)};" for each, said in changed.items()) + f" Therefore: {answer[0]}"


def changed_statements(head: str, statement: str, names: tuple[str, ...]) -> Iterator[str]:
    """Other statements of the same kind about the same variables, none of which can be true as well."""
    words = statement.split(" ")
    marks = [place for place, word in enumerate(words) if word in "<>-"]
    if head == "Skeleton":
        yield statement.replace(" - ", ", ") + " given nothing" if marks else f"{words[0][0]} - {words[1]}"
        yield statement[:-1] + "Q"
    elif head == "Colliders":
        yield from (f"{words[2]} > {words[0]} < {words[4]}", f"{words[0]} > {words[2]} > {words[4]}")
    elif statement.startswith("unless"):
        yield f"unless {words[3]} > {words[1]}"
        yield from (f"unless {a} - {b}" for a, b in permutations(names, 2))
    else:
        for place in marks:
            yield from (" ".join([*words[:place], mark, *words[place + 1 :]]) for mark in "<>-" if mark != words[place])


def needed(head: str, statement: str) -> bool:
    """Whether a section that leaves this statement out says too little for sure."""
    return head in ("Colliders", "Paths") or (head, " - " in statement) in (("Skeleton", True), ("Edges", False))


def plant(text: str, names: tuple[str, ...]) -> Iterator[str]:
    """Traces with one change each that makes some claim false."""
    sections = bodies(text)
    for head in HEADS[:-1]:
        said = sections[head]
        yield put(sections, head, [])
        yield put(sections, head, [*said, "none"])
        yield put(sections, head, [*said, "A + B"])
        if said == ["none"]:
            yield put(sections, head, ["A > B < C" if head == "Colliders" else "A > B"])
            continue
        if head == "Check" or any(needed(head, each) for each in said):
            yield put(sections, head, ["none"])
        for place, statement in enumerate(said):
            yield put(sections, head, [*said, statement])
            for other in changed_statements(head, statement, names):
                yield put(sections, head, [*said[:place], other, *said[place + 1 :]])
            if needed(head, statement):
                yield put(sections, head, [*said[:place], *said[place + 1 :]])
    yield from (text[: text.index(f"{head}:")] + text[text.index(f"{after}:") :] for head, after in pairwise(HEADS))
    answer = text.split()[-1]
    yield text.removesuffix(answer) + {"Yes": "No", "No": "Yes"}[answer]
    yield text.removesuffix(answer) + "Perhaps"
    yield text.removesuffix(f" Therefore: {answer}")
    yield text + f" Therefore: {answer}"


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_every_planted_change_is_caught(n: int) -> None:
    rng = random.Random(0)
    rows = all_rows(n)
    planted = 0
    for row in rng.sample(rows, min(len(rows), 400)):
        for style in STYLES:
            text = write(row, style)
            for other in plant(text, row.premise.names):
                planted += 1
                assert faults(other, row), (text, other, row.hypothesis)
    assert planted > 500


def test_a_separating_set_that_the_premise_does_not_state_is_caught() -> None:
    for row in all_rows(4)[::7]:
        sections = bodies(write(row))
        said, stated, names = sections["Skeleton"], set(row.premise.independences), row.premise.names
        for x, y in combinations(range(4), 2):
            rest = [z for z in range(4) if z not in (x, y)]
            for given_names in ((), (rest[0],), (rest[1],), tuple(rest)):
                if (x, y, given_names) not in stated:
                    words = " and ".join(names[z] for z in given_names) or "nothing"
                    false = f"{names[x]}, {names[y]} given {words}"
                    assert faults(put(sections, "Skeleton", [*said, false]), row)[-1].startswith(false)


@pytest.mark.parametrize("n", [3, 4])
def test_no_check_section_settles_the_wrong_answer(n: int) -> None:
    """Every set of up to two statements, true or not: where the answer is said to follow, it is right."""
    names = letters(n)
    ways = [
        " ".join(word for pair in zip(path, (*marks, ""), strict=True) for word in pair).strip()
        for size in (2, 3)
        for path in permutations(names, size)
        for marks in (("<",), (">",), ("-",)) * (size == 2)
        + (("<", ">"), (">", "<"), (">", ">"), ("-", ">")) * (size == 3)
    ]
    ways += [f"unless {a} > {b}" for a, b in permutations(names, 2)] + ["none"]
    rng = random.Random(n)
    for row in rng.sample(all_rows(n), 120):
        sections, right = bodies(write(row, "short")), label(solve(row.premise), row.hypothesis)
        wrong = {**sections, "Therefore": [("Yes", "No")[right]]}
        for said in [[each] for each in ways] + [rng.sample(ways, 2) for _ in range(30)]:
            assert not check(put(wrong, "Check", said), row)[-1].holds


def test_the_paths_of_a_certain_cause_may_differ() -> None:
    graph = cpdag((0b0110, 0b1000, 0b1000, 0))
    row = next(row for row in rows_of(graph) if row.hypothesis == Hypothesis(Relation.INDIRECT, 0, 3))
    text = write(row)
    assert text.endswith("Check: A - B > D; A - C > D; Therefore: Yes")
    before, _, after = text.partition("Check:")
    assert faults(f"{before}Check:{after.replace(' A - C > D;', '')}", row) == [
        "Check:: it does not settle the hypothesis", "Therefore: Yes: no true check section settles it"
    ]  # fmt: skip


def test_reading_passes_over_what_stands_around_a_trace() -> None:
    row = all_rows(4)[700]
    text = write(row)
    spaced = text.replace("; ", ";\n  ")
    assert faults(f"<think>Let us see.\n{spaced}</think>\nThat is all.", row) == []
    assert faults(text.replace("; Therefore", " Therefore"), row) == []


def test_sections_in_another_order_are_a_fault() -> None:
    row = all_rows(4)[700]
    sections = bodies(write(row))
    edges = sections.pop("Edges")
    assert faults(put({"Edges": edges, **sections}, "Edges", edges), row) == [
        "order: the sections are Skeleton, Colliders, Edges, Paths, Check, Therefore"
    ]


PIECES = st.sampled_from(
    [
        *(f"{head}:" for head in HEADS),
        "A",
        "B",
        "Q",
        ">",
        "<",
        "-",
        ",",
        ";",
        "given",
        "and",
        "nothing",
        "none",
        "unless",
        "Yes",
    ]
)


@settings(deadline=None)
@given(text=st.one_of(st.text(), st.lists(PIECES, max_size=40).map(" ".join)), place=st.integers(0, 400))
def test_no_text_raises_and_none_is_wholly_true_by_chance(text: str, place: int) -> None:
    row = all_rows(3)[100]
    whole = write(row)
    assert faults(text, row)
    check(whole[:place] + text + whole[place:], row)


def test_the_page_shows_a_true_trace() -> None:
    lines = [line.strip() for line in PAGE.read_text(encoding="utf-8").splitlines()]
    premise, hypothesis, trace = (
        next(line for line in lines if line.startswith(word)) for word in ("Premise:", "Hypothesis:", "Skeleton:")
    )
    assert write(read_row(f"{premise}\n{hypothesis}")) == trace
