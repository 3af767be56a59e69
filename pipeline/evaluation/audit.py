"""The faults of a Corr2Cause-like data set: wrong labels, impossible premises, repetitions, leaks, shortcuts."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.causal.equivalence import canonical
from pipeline.causal.readings import READINGS, certain_by
from pipeline.causal.relations import Hypothesis, Relation
from pipeline.causal.released import REPAIRS, repaired
from pipeline.causal.rows_file import read_rows
from pipeline.causal.solver import NoDag, solve
from pipeline.causal.text import Parsed, read_row, template
from pipeline.errors import UserError
from pipeline.evaluation.baselines import baselines
from pipeline.evaluation.metrics import classification

Tokens = Callable[[str], int]
_WORD = re.compile(r"\w+|[^\w\s]")
LISTED = 50
"""Row numbers that are listed for each fault; the counts are of all."""


def words(text: str) -> int:
    """How many words and punctuation marks a text has."""
    return len(_WORD.findall(text))


@dataclass(frozen=True)
class Asked:
    """One readable row, as the baselines look at it."""

    row: int
    label: int
    template: str
    premise_id: str
    hypothesis: str
    parsed: Parsed


@dataclass
class File:
    """What was found in one file."""

    path: Path
    rows: int = 0
    unreadable: list[tuple[int, str]] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    impossible: list[int] = field(default_factory=list)
    """Rows whose premise no DAG satisfies."""
    disagree: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    by_reading: dict[str, list[tuple[int, int]]] = field(default_factory=lambda: defaultdict(list))
    """For each reading: (label, what the solver says) of the rows that it settles."""
    repairs: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    """For each bug mended: rows of released premises whose label changes."""
    duplicates: dict[str, int] = field(default_factory=dict)
    premises: dict[str, int] = field(default_factory=dict)
    """How many rows each premise text has."""
    forms: dict[str, Any] = field(default_factory=dict)
    """Canonical form of the class of each premise text; None when no DAG satisfies it."""
    lengths: list[int] = field(default_factory=list)


def audit(paths: list[Path], limit: int = 512, tokens: Tokens = words) -> dict[str, Any]:
    """Everything that `corr2cause audit` reports, as JSON. Raises UserError for a file that cannot be read at all."""
    files = [_look_at(path, tokens) for path in paths]
    return {
        "files": [_told(each, limit) for each in files],
        "leaks": [_leak(a, b) for place, a in enumerate(files) for b in files[place + 1 :]],
    }


def _look_at(path: Path, tokens: Tokens) -> File:
    found = File(path)
    texts: Counter[str] = Counter()
    meanings: Counter[tuple[str, Hypothesis]] = Counter()
    for row, record in enumerate(read_rows(path)):
        found.rows += 1
        try:
            asked = _read(row, record)
        except UserError as error:
            found.unreadable.append((row, f"row {row}: {error}"))
            continue
        texts[record["input"]] += 1
        meanings[asked.premise_id, asked.parsed.hypothesis] += 1
        found.asked.append(asked)
        found.lengths.append(tokens(record["input"]))
        _judge(found, asked)
    found.duplicates = {
        "same text": sum(count - 1 for count in texts.values()),
        "same meaning": sum(count - 1 for count in meanings.values()),
    }
    return found


def _read(row: int, record: dict[str, str]) -> Asked:
    label = record.get("label")
    if label not in ("0", "1", "2"):
        raise UserError("the label is not 0, 1 or 2", value=label, do="mend this row")
    parsed = read_row(record.get("input", ""))
    premise, _, hypothesis = record["input"].strip().removeprefix("Premise:").partition("\nHypothesis:")
    named = record.get("template") or template(hypothesis.strip())
    return Asked(row, int(label == "1"), named, premise.strip(), hypothesis.strip(), parsed)


def _judge(found: File, asked: Asked) -> None:
    """Hold a row's label against the solver, by every reading and with the bugs of the release mended."""
    h = asked.parsed.hypothesis
    for repair in REPAIRS:
        label = repaired(asked.parsed.premise, h, repair)
        if label is not None and label != asked.label:
            found.repairs[repair].append(asked.row)
    found.premises[asked.premise_id] = found.premises.get(asked.premise_id, 0) + 1
    try:
        graph = solve(asked.parsed.premise)
    except NoDag:
        found.impossible.append(asked.row)
        found.forms[asked.premise_id] = None
        return
    if asked.premise_id not in found.forms:
        found.forms[asked.premise_id] = canonical(graph)[0]
    for reading in READINGS:
        held = certain_by(graph, reading)
        if held is not None:
            said = int(held[h.relation, h.x, h.y])
            found.by_reading[reading].append((asked.label, said))
            if said != asked.label:
                found.disagree[reading].append(asked.row)


def _told(found: File, limit: int) -> dict[str, Any]:
    positive = sum(each.label for each in found.asked)
    return {
        "file": str(found.path),
        "rows": found.rows,
        "unreadable": {"count": len(found.unreadable), "first": [told for _, told in found.unreadable[:5]]},
        "valid": positive,
        "premises": len(found.premises),
        "impossible": {
            "premises": sum(form is None for form in found.forms.values()),
            "rows": len(found.impossible),
            "first": found.impossible[:LISTED],
        },
        "labels": {reading: _agreement(found, reading) for reading in READINGS},
        "released bugs": {
            name: {"count": len(found.repairs[name]), "first": found.repairs[name][:LISTED]} for name in REPAIRS
        },
        "duplicates": found.duplicates,
        "templates": _templates(found),
        "letters": _letters(found),
        "shortcuts": baselines(found.asked) if found.asked else {},
        "lengths": _lengths(found.lengths, limit),
    }


def _agreement(found: File, reading: str) -> dict[str, Any]:
    pairs = found.by_reading[reading]
    scored = classification(["yes" if said else "no" for _, said in pairs], [label for label, _ in pairs])
    wrong = found.disagree[reading]
    return {
        "settled": len(pairs),
        "disagree": len(wrong),
        "first": wrong[:LISTED],
        "f1": float(scored["f1"]) if pairs else None,
    }


def _templates(found: File) -> dict[str, dict[str, int]]:
    names = sorted({each.template for each in found.asked})
    return {
        name: {
            "rows": sum(each.template == name for each in found.asked),
            "valid": sum(each.label for each in found.asked if each.template == name),
        }
        for name in names
    }


def _letters(found: File) -> dict[str, dict[str, int]]:
    """Valid rows by the order of the letters of cause and effect: equal shares where it says nothing."""
    causes = [each for each in found.asked if each.parsed.hypothesis.relation <= Relation.INDIRECT]
    told = {}
    for name, forward in (("cause first", True), ("effect first", False)):
        own = [each for each in causes if (each.parsed.hypothesis.x < each.parsed.hypothesis.y) == forward]
        told[name] = {"rows": len(own), "valid": sum(each.label for each in own)}
    return told


def _lengths(lengths: list[int], limit: int) -> dict[str, float]:
    if not lengths:
        return {}
    counted = np.array(lengths)
    return {
        "mean": round(float(counted.mean()), 1),
        "median": float(np.median(counted)),
        "p90": float(np.percentile(counted, 90)),
        "p99": float(np.percentile(counted, 99)),
        "max": int(counted.max()),
        "limit": limit,
        "over the limit": int((counted > limit).sum()),
    }


def _leak(a: File, b: File) -> dict[str, Any]:
    """Premises that two files share, as text and up to renaming of the variables, and identical rows."""
    forms = [{form for form in each.forms.values() if form is not None} for each in (a, b)]
    inputs = [{(each.premise_id, each.hypothesis) for each in file.asked} for file in (a, b)]
    return {
        "files": [str(a.path), str(b.path)],
        "same premises": len(a.premises.keys() & b.premises.keys()),
        "same classes up to renaming": len(forms[0] & forms[1]),
        "same rows": len(inputs[0] & inputs[1]),
    }
