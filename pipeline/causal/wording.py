"""How premises and hypotheses are worded: the released wording, a paraphrase, a compact one, and others from files."""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.causal.relations import Relation
from pipeline.errors import UserError


@dataclass(frozen=True, eq=False)
class Wording:
    """Templates; `{n}` and `{names}` stand in the opening, `{x}`, `{y}` and `{given}` in the statements."""

    name: str
    opening: str
    correlated: str
    """One statement for each pair that is not independent; empty in a compact wording, which leaves them out."""
    independent: str
    separated: str
    turn: str
    """Between the two kinds of statements, where there are both."""
    nothing: str
    """In place of the statements where there are none; empty when there always are some."""
    hypotheses: Mapping[Relation, tuple[str, ...]]
    names: tuple[str, ...] = ()
    """What the variables are called; letters when empty."""

    @property
    def compact(self) -> bool:
        """Whether a premise states one minimal separating set for each pair that has one, and nothing else."""
        return not self.correlated


RELEASED = Wording(
    name="released",
    opening=(
        "Suppose there is a closed system of {n} variables, {names}. "
        "All the statistical relations among these {n} variables are as follows: "
    ),
    correlated="{x} correlates with {y}.",
    independent="{x} is independent of {y}.",
    separated="{x} and {y} are independent given {given}.",
    turn=" However, ",
    nothing="",
    hypotheses={
        Relation.DIRECT: ("{x} directly causes {y}.",),
        Relation.INDIRECT: (
            "{x} causes something else which causes {y}.",
            "{x} is a cause for {y}, but not a direct one.",
        ),
        Relation.COLLIDER: ("There exists at least one collider (i.e., common effect) of {x} and {y}.",),
        Relation.CONFOUNDER: ("There exists at least one confounder (i.e., common cause) of {x} and {y}.",),
    },
)

PARAPHRASED = Wording(
    name="paraphrased",
    opening=(
        "Consider {n} variables, {names}, that nothing outside of them influences. "
        "Of these {n} variables the following is known: "
    ),
    correlated="{x} is statistically associated with {y}.",
    independent="{x} tells nothing about {y}.",
    separated="Once {given} is known, {x} tells nothing about {y}.",
    turn=" On the other hand, ",
    nothing="",
    hypotheses={
        Relation.DIRECT: ("{x} directly affects {y}.",),
        Relation.INDIRECT: ("{x} influences {y} through some mediator(s).",),
        Relation.COLLIDER: ("{x} and {y} together cause some other variable(s).",),
        Relation.CONFOUNDER: ("Some variable(s) cause(s) both {x} and {y}.",),
    },
)
"""Our premise; the hypotheses are those of the released paraphrased set."""

COMPACT = Wording(
    name="compact-1",
    opening=(
        "Suppose there is a closed system of {n} variables, {names}. "
        "Any two of these {n} variables depend on each other whatever else is given, except for the following pairs, "
        "each with one minimal set that makes it independent: "
    ),
    correlated="",
    independent=RELEASED.independent,
    separated=RELEASED.separated,
    turn=RELEASED.turn,
    nothing="There are none.",
    hypotheses=RELEASED.hypotheses,
)
"""For many variables, whose independences would fill books (1.2e9 of them at 24)."""

WORDINGS = (RELEASED, PARAPHRASED, COMPACT)
"""The wordings that can be read back."""

_TEXTS = {
    "opening": {"n", "names"}, "correlated": {"x", "y"}, "independent": {"x", "y"}, "separated": {"x", "y", "given"},
    "turn": set(), "nothing": set(),
}  # fmt: skip


def load_wording(path: Path) -> Wording:
    """A wording from a YAML file: the templates, `hypotheses` by relation (direct, indirect, collider, confounder)
    and `names`, the variables of a story. Raises UserError that names the key which is wrong.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            "cannot read the wording", value=error.strerror, where=str(path), do="check the path"
        ) from error
    except yaml.YAMLError as error:
        raise UserError("not YAML", value=str(error)[:100], where=str(path), do="mend the file") from error
    wanted = {"name", *_TEXTS, "hypotheses", "names"}
    if not isinstance(content, dict) or set(content) != wanted:
        given = sorted(content) if isinstance(content, dict) else type(content).__name__
        raise UserError(
            "a wording has the keys " + ", ".join(sorted(wanted)), value=given, where=str(path), do="give just those"
        )
    for key, fields in _TEXTS.items():
        if key != "correlated" or content[key]:
            _fields(content[key], fields, f"{path}, key {key}")
    return Wording(
        name=str(content["name"]),
        **{key: str(content[key] or "") for key in _TEXTS},
        hypotheses=_hypotheses(content["hypotheses"], path),
        names=_names(content["names"], path),
    )


def _fields(text: Any, wanted: set[str], where: str) -> None:
    found = {field for _, field, _, _ in string.Formatter().parse(text) if field} if isinstance(text, str) else None
    if found != wanted:
        told = ", ".join(f"{{{each}}}" for each in sorted(wanted)) or "no field"
        raise UserError(f"this text has {told}", value=text, where=where, do="write it so")


def _hypotheses(given: Any, path: Path) -> dict[Relation, tuple[str, ...]]:
    wanted = {relation.name.lower(): relation for relation in Relation}
    if not isinstance(given, dict) or set(given) != set(wanted) or not all(given.values()):
        raise UserError("hypotheses are lists under " + ", ".join(wanted), value=given, where=str(path), do="give all")
    for name, texts in given.items():
        for text in texts:
            _fields(text, {"x", "y"}, f"{path}, key hypotheses.{name}")
    return {relation: tuple(given[name]) for name, relation in wanted.items()}


def _names(given: Any, path: Path) -> tuple[str, ...]:
    if not isinstance(given, list) or len(set(map(str, given))) != len(given):
        raise UserError("names is a list of different names", value=given, where=str(path), do="list them")
    return tuple(map(str, given))
