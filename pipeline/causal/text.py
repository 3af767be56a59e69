"""The released wording of a premise and a hypothesis: write it, and read it back strictly."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from pipeline.causal.dseparation import Independence
from pipeline.causal.graphs import pairs
from pipeline.causal.relations import Hypothesis, Relation
from pipeline.errors import UserError

WORDINGS = {
    Relation.DIRECT: ("{x} directly causes {y}.",),
    Relation.INDIRECT: ("{x} causes something else which causes {y}.", "{x} is a cause for {y}, but not a direct one."),
    Relation.COLLIDER: ("There exists at least one collider (i.e., common effect) of {x} and {y}.",),
    Relation.CONFOUNDER: ("There exists at least one confounder (i.e., common cause) of {x} and {y}.",),
}
"""The released hypothesis templates; an indirect cause has two."""

PARAPHRASES = {
    Relation.DIRECT: ("{x} directly affects {y}.",),
    Relation.INDIRECT: ("{x} influences {y} through some mediator(s).",),
    Relation.COLLIDER: ("{x} and {y} together cause some other variable(s).",),
    Relation.CONFOUNDER: ("Some variable(s) cause(s) both {x} and {y}.",),
}
"""The templates of the released paraphrased set."""

ANSWERS = ("No", "Yes")
"""The word for label 0 and for label 1."""

OPENING = (
    "Suppose there is a closed system of {n} variables, {names}. "
    "All the statistical relations among these {n} variables are as follows: "
)
_OPENING = re.compile(
    re.escape(OPENING).replace(r"\{n\}", r"(\d+)", 1).replace(r"\{n\}", r"(\d+)").replace(r"\{names\}", r"([^.:]+)")
)
_WORDING = "use the released wording"
_UNCUT = "give the whole premise in the released wording"
_BETWEEN = re.compile(r", | and ")
_NAME = r"([^\s,.;:]+)"
_STATEMENTS = (
    re.compile(rf"{_NAME} correlates with {_NAME}\."),
    re.compile(rf"{_NAME} is independent of {_NAME}\."),
    re.compile(rf"{_NAME} and {_NAME} are independent given ([^.]+)\."),
)
_HYPOTHESES = tuple(
    (relation, re.compile(re.escape(wording).replace(r"\{x\}", _NAME).replace(r"\{y\}", _NAME)))
    for table in (WORDINGS, PARAPHRASES)
    for relation, wordings in table.items()
    for wording in wordings
)


@dataclass(frozen=True)
class Premise:
    """What a premise states; variables are indices into `names`, in the order in which it lists them."""

    names: tuple[str, ...]
    correlations: frozenset[tuple[int, int]]
    independences: tuple[Independence, ...]


@dataclass(frozen=True)
class Parsed:
    """A row read back."""

    premise: Premise
    hypothesis: Hypothesis


def letters(n: int) -> tuple[str, ...]:
    """The released variable names: A, B, C, ..."""
    return tuple(chr(ord("A") + i) for i in range(n))


def join(names: Sequence[str]) -> str:
    """`A`, `A and B`, `A, B and C`."""
    return " and ".join(names) if len(names) <= 2 else f"{', '.join(names[:-1])} and {names[-1]}"


def split_names(text: str) -> list[str]:
    """The inverse of `join`."""
    return _BETWEEN.split(text)


def write_premise(independences: Sequence[Independence], names: Sequence[str]) -> str:
    """The premise that states these independences, which are sorted, and a correlation for every other pair."""
    apart = {(x, y) for x, y, given in independences if not given}
    related = " ".join(f"{names[x]} correlates with {names[y]}." for x, y in pairs(len(names)) if (x, y) not in apart)
    unrelated = " ".join(_independence(each, names) for each in independences)
    return OPENING.format(n=len(names), names=join(names)) + " However, ".join(filter(None, (related, unrelated)))


def _independence(each: Independence, names: Sequence[str]) -> str:
    x, y, given = each
    if not given:
        return f"{names[x]} is independent of {names[y]}."
    return f"{names[x]} and {names[y]} are independent given {join([names[z] for z in given])}."


def write_hypothesis(hypothesis: Hypothesis, names: Sequence[str], phrase: int = 0) -> str:
    """The hypothesis in the released wording; `phrase` chooses among the wordings of its relation."""
    return WORDINGS[hypothesis.relation][phrase].format(x=names[hypothesis.x], y=names[hypothesis.y])


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
    opening = _OPENING.match(text)
    if opening is None:
        raise UserError("a premise begins with `Suppose there is a closed system of`", value=text[:80], do=_WORDING)
    names = tuple(split_names(opening[2]))
    if {opening[1], opening[3]} != {str(len(names))} or len(set(names)) < len(names) or len(names) < 2:
        raise UserError(f"a closed system of {opening[1]} variables lists", value=opening[2], do=_WORDING)
    correlations, independences = _read_statements(text[opening.end() :].strip(), names)
    _agree(correlations, independences, names)
    return Premise(names, frozenset(correlations), tuple(sorted(independences)))


def _read_statements(text: str, names: tuple[str, ...]) -> tuple[set[tuple[int, int]], set[Independence]]:
    correlations: set[tuple[int, int]] = set()
    independences: set[Independence] = set()
    for sentence in re.findall(r"[^.]+\.?", text):
        bare = sentence.strip().removeprefix("However, ")
        match = next(filter(None, (pattern.fullmatch(bare) for pattern in _STATEMENTS)), None)
        if match is None:
            raise UserError("not a whole statement of the released wording", value=bare[:80], do=_UNCUT)
        first, second, *more = match.groups()
        x, y, *given = (_index(name, names, bare) for name in (first, second, *(split_names(more[0]) if more else ())))
        if len({x, y, *given}) < 2 + len(given):
            raise UserError("a statement names a variable twice", value=bare, do=_WORDING)
        x, y = sorted((x, y))
        if match.re is _STATEMENTS[0]:
            correlations.add((x, y))
        else:
            independences.add((x, y, tuple(sorted(given))))
    return correlations, independences


def _index(name: str, names: tuple[str, ...], where: str) -> int:
    if name not in names:
        known = join(names)
        raise UserError("a variable that the premise does not list", value=name, where=where, do=f"name one of {known}")
    return names.index(name)


def _agree(correlations: set[tuple[int, int]], independences: set[Independence], names: tuple[str, ...]) -> None:
    """Each pair is either correlated or stated independent: another count means a cut or self-contradicting text."""
    for x, y in pairs(len(names)):
        if ((x, y) in correlations) == ((x, y, ()) in independences):
            said = "both" if (x, y) in correlations else "neither"
            pair = f"{names[x]} and {names[y]}"
            raise UserError(f"{pair} are said to be {said} of correlated and independent", do=_UNCUT)


def read_hypothesis(text: str, names: tuple[str, ...]) -> Hypothesis:
    """Read a hypothesis in the released wording or its paraphrase. Raises UserError for other text."""
    for relation, pattern in _HYPOTHESES:
        if match := pattern.fullmatch(text):
            x, y = (_index(name, names, text) for name in match.groups())
            if x == y:
                raise UserError("a hypothesis about one variable", value=text, do="name two variables")
            if relation in (Relation.COLLIDER, Relation.CONFOUNDER):
                x, y = sorted((x, y))
            return Hypothesis(relation, x, y)
    raise UserError("a hypothesis of none of the released wordings", value=text[:80], do=_WORDING)


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
