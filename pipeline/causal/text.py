"""The released wording of a premise and a hypothesis: write it, and read it back strictly."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from pipeline.causal.dseparation import Independence
from pipeline.causal.graphs import pairs
from pipeline.causal.relations import Hypothesis, Relation
from pipeline.causal.wording import PARAPHRASED, RELEASED, WORDINGS, Wording
from pipeline.errors import UserError

ANSWERS = ("No", "Yes")
"""The word for label 0 and for label 1."""

MOST_VARIABLES = 24
"""The solver is made and tested for premises of up to this many variables."""
_WORDING = "use the released wording"
_UNCUT = "give the whole premise in the released wording"
_SENTENCE = re.compile(r"[^.]+\.?")
_BETWEEN = re.compile(r", | and ")
_NAME = r"([^\s,.;:]+)"
_FIELD = {
    "n": r"(\d+)",
    "names": r"([^.:]+)",
    "x": rf"(?P<x>{_NAME})",
    "y": rf"(?P<y>{_NAME})",
    "given": r"(?P<given>[^.]+)",
}


def _pattern(text: str) -> re.Pattern[str]:
    """What a template looks like once it is filled in."""
    pieces = [re.escape(fixed) + _FIELD.get(field or "", "") for fixed, field, _, _ in string.Formatter().parse(text)]
    return re.compile("".join(pieces))


@dataclass(frozen=True)
class _Reader:
    """The patterns of a wording."""

    wording: Wording
    opening: re.Pattern[str]
    statements: tuple[re.Pattern[str], ...]
    """Independent, given others, correlated (which a compact wording has not)."""


_READERS = tuple(
    _Reader(
        each,
        _pattern(each.opening),
        tuple(_pattern(text) for text in (each.independent, each.separated, each.correlated) if text),
    )
    for each in WORDINGS
)
_HYPOTHESES = tuple(
    (relation, _pattern(text))
    for wording in (RELEASED, PARAPHRASED)
    for relation, texts in wording.hypotheses.items()
    for text in texts
)


@dataclass(frozen=True)
class Premise:
    """What a premise states; variables are indices into `names`, in the order in which it lists them."""

    names: tuple[str, ...]
    correlations: frozenset[tuple[int, int]]
    independences: tuple[Independence, ...]
    compact: bool = False
    """Whether one smallest separating set is stated for each pair that has one, instead of all."""


@dataclass(frozen=True)
class Parsed:
    """A row read back."""

    premise: Premise
    hypothesis: Hypothesis


def letters(n: int) -> tuple[str, ...]:
    """The released variable names: A, B, C, ..."""
    return tuple(chr(ord("A") + i) for i in range(n))


def last_letters(n: int) -> tuple[str, ...]:
    """The variable names of the released refactorized set: Z, Y, X, ..."""
    return tuple(chr(ord("Z") - i) for i in range(n))


def join(names: Sequence[str]) -> str:
    """`A`, `A and B`, `A, B and C`."""
    return " and ".join(names) if len(names) <= 2 else f"{', '.join(names[:-1])} and {names[-1]}"


def split_names(text: str) -> list[str]:
    """The inverse of `join`."""
    return _BETWEEN.split(text)


def write_premise(independences: Sequence[Independence], names: Sequence[str], wording: Wording = RELEASED) -> str:
    """The premise that states these independences, which are sorted, and a correlation for every other pair."""
    apart = {(x, y) for x, y, given in independences if not given}
    related = "" if wording.compact else " ".join(
        wording.correlated.format(x=names[x], y=names[y]) for x, y in pairs(len(names)) if (x, y) not in apart
    )  # fmt: skip
    unrelated = " ".join(_independence(each, names, wording) for each in independences)
    stated = wording.turn.join(filter(None, (related, unrelated)))
    return wording.opening.format(n=len(names), names=join(names)) + (stated or wording.nothing)


def _independence(each: Independence, names: Sequence[str], wording: Wording) -> str:
    x, y, given = each
    template = wording.separated if given else wording.independent
    return template.format(x=names[x], y=names[y], given=join([names[z] for z in given]))


def write_hypothesis(hypothesis: Hypothesis, names: Sequence[str], phrase: int = 0, wording: Wording = RELEASED) -> str:
    """The hypothesis; `phrase` chooses among the texts that the wording has for its relation."""
    return wording.hypotheses[hypothesis.relation][phrase].format(x=names[hypothesis.x], y=names[hypothesis.y])


def write_row(premise: str, hypothesis: str) -> str:
    """The released input text."""
    return f"Premise: {premise}\nHypothesis: {hypothesis}"


def read_row(text: str) -> Parsed:
    """Read `Premise: ...` and, on the next line, `Hypothesis: ...`. Raises UserError for any other text."""
    match = re.fullmatch(r"\s*Premise:([^\n]*)\n\s*Hypothesis:([^\n]*)\s*", text)
    if match is None:
        raise UserError(
            "a row is `Premise: ...` and, on the next line, `Hypothesis: ...`", value=text[:80], do="give both lines"
        )
    premise = read_premise(match[1].strip())
    return Parsed(premise, read_hypothesis(match[2].strip(), premise.names))


@lru_cache(maxsize=1 << 14)
def read_premise(text: str) -> Premise:
    """Read a premise. Raises UserError for a cut or different wording, unknown variables or contradictions."""
    reader, opening = next(
        ((each, match) for each in _READERS if (match := each.opening.match(text))), (_READERS[0], None)
    )
    if opening is None:
        start = RELEASED.opening.partition("{")[0].strip()
        raise UserError(f"a premise begins with `{start}`", value=text[:80], do=_WORDING)
    count, listed, again = opening.groups()
    names = tuple(split_names(listed))
    if {count, again} != {str(len(names))} or len(set(names)) < len(names) or not 2 <= len(names) <= MOST_VARIABLES:
        raise UserError(
            f"a closed system of {count} variables (2 to {MOST_VARIABLES}) lists", value=listed, do=_WORDING
        )
    correlations, independences = _read_statements(text[opening.end() :].strip(), names, reader)
    premise = Premise(names, frozenset(correlations), tuple(sorted(independences)), reader.wording.compact)
    _agree(premise)
    return premise


def _read_statements(
    text: str, names: tuple[str, ...], reader: _Reader
) -> tuple[set[tuple[int, int]], set[Independence]]:
    correlations: set[tuple[int, int]] = set()
    independences: set[Independence] = set()
    places = {name: place for place, name in enumerate(names)}
    turn = reader.wording.turn.strip() + " "
    if reader.wording.nothing and text == reader.wording.nothing:
        return correlations, independences
    for sentence in _SENTENCE.findall(text):
        bare = sentence.strip().removeprefix(turn)
        match = next(filter(None, (pattern.fullmatch(bare) for pattern in reader.statements)), None)
        if match is None:
            raise UserError("not a whole statement of the wording", value=bare[:80], do=_UNCUT)
        said = match.groupdict()
        given = split_names(said["given"]) if said.get("given") else []
        x, y, *rest = (_index(name, places, bare) for name in (said["x"], said["y"], *given))
        if len({x, y, *rest}) < 2 + len(rest):
            raise UserError("a statement names a variable twice", value=bare, do=_WORDING)
        x, y = sorted((x, y))
        if match.re in reader.statements[2:]:
            correlations.add((x, y))
        else:
            independences.add((x, y, tuple(sorted(rest))))
    return correlations, independences


def _index(name: str, places: Mapping[str, int], where: str) -> int:
    if name not in places:
        known = join(list(places))
        raise UserError("a variable that the premise does not list", value=name, where=where, do=f"name one of {known}")
    return places[name]


def _agree(premise: Premise) -> None:
    """Each pair is correlated or independent, or in a compact premise separated once: else it is cut or muddled."""
    if premise.compact:
        separated = [(x, y) for x, y, _ in premise.independences]
        twice = next((pair for pair in separated if separated.count(pair) > 1), None)
        if twice is not None:
            pair = " and ".join(premise.names[place] for place in twice)
            raise UserError("a compact premise gives a pair one separating set", value=pair, do="state one")
        return
    apart = {(x, y) for x, y, given in premise.independences if not given}
    for x, y in pairs(len(premise.names)):
        if ((x, y) in premise.correlations) == ((x, y) in apart):
            said = "both" if (x, y) in apart else "neither"
            pair = f"{premise.names[x]} and {premise.names[y]}"
            raise UserError(f"{pair} are said to be {said} of correlated and independent", do=_UNCUT)


def read_hypothesis(text: str, names: tuple[str, ...]) -> Hypothesis:
    """Read a hypothesis in the released wording or its paraphrase. Raises UserError for other text."""
    for relation, pattern in _HYPOTHESES:
        if match := pattern.fullmatch(text):
            places = {name: place for place, name in enumerate(names)}
            x, y = (_index(name, places, text) for name in (match["x"], match["y"]))
            if x == y:
                raise UserError("a hypothesis about one variable", value=text, do="name two variables")
            if relation in (Relation.COLLIDER, Relation.CONFOUNDER):
                x, y = sorted((x, y))
            return Hypothesis(relation, x, y)
    raise UserError("a hypothesis of none of the known wordings", value=text[:80], do=_WORDING)


def template(text: str) -> str:
    """The released `template` column of a hypothesis: it follows the wording, and the letters for direct causes."""
    for phrase, name in (
        ("causes something else", "non-parent ancestor"),
        ("is a cause for", "non-child descendant"),
        ("collider", "has_collider"),
        ("confounder", "has_confounder"),
    ):
        if phrase in text:
            return name
    return "parent" if text.split()[0] < text.rstrip(".").split()[-1] else "child"
