"""A teacher's prediction file: what a model said about which rows, and which of it is right. No heavy imports."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.causal.generate import Row
from pipeline.causal.splits import split_of_name
from pipeline.causal.text import write_row
from pipeline.errors import UserError
from pipeline.recipe_data import Data
from pipeline.settings import raise_all
from pipeline.tasks.corr2cause import score
from pipeline.tasks.rows import labelled, read
from pipeline.tasks.source import MAX_REPORTED, is_file_source, read_csv

COUNTED = ("used", "wrong", "unparsable", "unmatched", "held_out", "repeated")
"""What becomes of a prediction. `unmatched`: its row cannot be read, or the recipe's range leaves it out; `held_out`:
its class belongs to dev or test; `repeated`: the same words about the same row stood before."""

_FORMAT = "give JSON lines that begin with a header, or {header, predictions}"
_ROW = re.compile(r"Premise:([^\n]*)\n\s*Hypothesis:([^\n]*)")
_PAPER_ROW = re.compile(r"Question:([^\n]*)\nCan we deduct the following:([^\n?]*)\?")


@dataclass(frozen=True)
class Answered:
    """One prediction. `text` is its row in the released wording; "" where the prompt is worded in another way, None
    where only `row`, its number in the data file, is known."""

    where: str
    text: str | None
    row: int | None
    label: int | None
    completion: str
    correct: bool | None
    """The file's own verdict: told where it differs from ours, else not used."""


@dataclass
class Taught:
    """Training rows with the teacher's right completions, and what became of every prediction."""

    rows: list[Row] = field(default_factory=list)
    completions: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


def read_teacher(path: Path) -> list[Answered]:
    """The predictions of a file: JSON lines after a `{"header": ...}`, or one `{"header": ..., "predictions": [...]}`.

    Raises UserErrors, up to ten, that name the line (or the place in the list) and what is wrong with it.
    """
    read_: list[Answered] = []
    errors: list[UserError] = []
    for where, value in _records(path):
        try:
            read_.append(_answered(value, where, path))
        except UserError as error:
            errors.append(error)
            if len(errors) == MAX_REPORTED:
                break
    raise_all(errors)
    if not read_:
        raise UserError("a prediction file without predictions", value=path.name, where=str(path), do=_FORMAT)
    return read_


def _records(path: Path) -> list[tuple[str, Any]]:
    """(place, value) of every prediction."""
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError):
        raise UserError("no such prediction file", value=str(path), where="data.teacher", do="check the path") from None
    except PermissionError as error:
        raise UserError("cannot read", value=error.strerror, where=str(path), do="check its permissions") from None
    except UnicodeDecodeError as error:
        raise UserError("not UTF-8 text", value=f"byte {error.start}", where=str(path), do="save it as UTF-8") from None
    first, *rest = text.removesuffix("\n").split("\n")  # not splitlines(): completions may hold other line separators
    header = _json(first)
    if isinstance(header, dict) and "header" in header and "predictions" not in header:
        return [(f"line {number}", _line(line, number, path)) for number, line in enumerate(rest, start=2)]
    if isinstance(header, dict) and rest:
        raise UserError("a prediction file begins with its header, not with", value=first[:60], where=str(path),
                        do=_FORMAT)  # fmt: skip
    return _listed(text, path)


def _listed(text: str, path: Path) -> list[tuple[str, Any]]:
    try:
        whole = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f"line {error.lineno} is not JSON", value=text.split("\n")[error.lineno - 1][-60:], where=str(path),
            do=f"{_FORMAT} (a torn file?)",
        ) from None  # fmt: skip
    listed = whole.get("predictions") if isinstance(whole, dict) and "header" in whole else None
    if not isinstance(listed, list):
        raise UserError("not a prediction file", value=text[:60], where=str(path), do=_FORMAT)
    return [(f"predictions[{index}]", value) for index, value in enumerate(listed)]


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return None


def _line(line: str, number: int, path: Path) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        what = f"line {number} is not JSON (a torn file?)"
        raise UserError(what, value=line[-60:], where=str(path), do="mend or delete this line") from None


def _answered(value: Any, where: str, path: Path) -> Answered:
    def refuse(what: str, found: object) -> UserError:
        return UserError(f"{where}: {what}", value=found, where=str(path), do="mend or delete this prediction")

    if not isinstance(value, dict):
        raise refuse("a prediction is an object, not", str(value)[:60])
    if not isinstance(value.get("completion"), str):
        raise refuse("no text under `completion`; its keys are", list(value))
    if value.get("label") not in (0, 1, None):
        raise refuse("the label is not 0 or 1", value["label"])
    if value.get("correct") not in (True, False, None):
        raise refuse("`correct` is not true, false or null", value["correct"])
    named = str(value.get("row", value.get("id")))
    number = int(named) if named.isdecimal() else None
    asked = any(isinstance(value.get(key), str) for key in ("premise", "premise_id", "input", "prompt"))
    if number is None and not asked:
        raise refuse("nothing names its row (premise and hypothesis, prompt, or row); its keys are", list(value))
    return Answered(
        where, _text(value) if asked else None, number, value.get("label"), value["completion"], value.get("correct")
    )


def _text(value: dict[str, Any]) -> str:
    """The row that a prediction is about, in the released wording, or ""."""
    premise, hypothesis = value.get("premise", value.get("premise_id")), value.get("hypothesis")
    if isinstance(premise, str) and isinstance(hypothesis, str):
        bare = (premise.removeprefix("Premise:").strip(), hypothesis.removeprefix("Hypothesis:").strip())
        return write_row(*bare)
    for key in ("input", "prompt"):
        text = str(value.get(key, ""))
        if found := _ROW.findall(text):
            return write_row(*(part.strip() for part in found[-1]))  # examples may stand before the question
        if found := _PAPER_ROW.findall(text):
            return write_row(found[-1][0].strip(), f"{found[-1][1].strip().rstrip('.')}.")
    return ""


def taught(data: Data, held_out: set[str]) -> Taught:
    """What the recipe's teacher said rightly about training rows, in the order of its file.

    The scorer of the task judges, by the labels that `data.labels` names; `held_out` are classes that no training
    row may have. Raises UserError for a broken file, or when nothing in it can be used.
    """
    path, found = Path(str(data.teacher)), Taught()
    seen: set[tuple[str, str]] = set()
    for each, text, label in _located(read_teacher(path), data, path):
        found.counts["predictions"] += 1
        row = _training_row(text, label, data)
        if row is None:
            fate = "unmatched"
        elif row.mec in held_out or split_of_name(row.mec) != "train":
            fate = "held_out"
        else:
            verdict = score(each.completion, vars(row))
            fate = "used" if verdict.correct else "wrong" if verdict.parsed else "unparsable"
            found.counts["differs_from_file"] += each.correct is not None and each.correct != verdict.correct
            if fate == "used" and (row.input, each.completion) in seen:
                fate = "repeated"
        found.counts[fate] += 1
        if row is not None and fate == "used":
            seen.add((row.input, each.completion))
            found.rows.append(row)
            found.completions.append(each.completion)
    if not found.rows:
        told = {fate: found.counts[fate] for fate in COUNTED if found.counts[fate]}
        raise UserError("no prediction of the teacher can be used", value=told, where=str(path),
                        do="give right answers to rows of training classes within the recipe's variables")  # fmt: skip
    return found


def _training_row(text: str, label: int | None, data: Data) -> Row | None:
    """The row, labelled as the recipe says, or None when it cannot be read, has no DAG or is out of range."""
    try:
        row = read(text, label or 0)
    except UserError:
        return None
    if not row.mec or not data.min_variables <= row.num_variables <= data.max_variables:
        return None
    return labelled(row, label, data) if label is not None else row


def _located(read_: list[Answered], data: Data, path: Path) -> Iterator[tuple[Answered, str, int | None]]:
    """Each prediction with its row's text and label; rows known by number alone are looked up in the data file.

    Raises UserError when they cannot be, when that file has another label for one (it is then another file), and for
    a missing label where the recipe asks for the released ones.
    """
    rows: dict[int, tuple[str, int]] = {}
    numbered = next((each for each in read_ if each.text is None), None)
    if is_file_source(data.source) and not all(each.text for each in read_):
        rows = {row: (text, label) for row, text, label in read_csv(Path(data.source))}
    elif numbered is not None:
        raise UserError(
            f"{numbered.where} names its row by number alone, and data.source is no file to look it up in",
            value=data.source, where=str(path), do="give data.source the file, or each prediction its premise",
        )  # fmt: skip
    for each in read_:
        text, label = each.text or "", each.label
        if not text and each.row in rows:
            text, released = rows[each.row]
            if label not in (None, released):
                raise UserError(f"{each.where}: row {each.row} of {data.source} has label {released}, not", value=label,
                                where=str(path), do="give data.source the file that was answered")  # fmt: skip
            label = released
        if data.labels == "released" and label is None and text:
            raise UserError(f"{each.where}: no label, and data.labels is", value=data.labels, where=str(path),
                            do="use data.labels: corrected, or give every prediction its label")  # fmt: skip
        yield each, text, label
