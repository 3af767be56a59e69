"""Prediction files: JSON lines, a header and then one row a line. Every number of a comparison comes from them."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import UserError
from pipeline.evaluation.metrics import Answer
from pipeline.records import write_atomic

AGAIN = "delete the file and evaluate again"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


Record = TypeVar("Record", bound=_Strict)


class Step(_Strict):
    """One reasoning step of a completion and whether it is true of the premise."""

    text: str
    true: bool
    reason: str


class Sample(_Strict):
    """One of several completions that were drawn for a row."""

    completion: str
    answer: Answer | None
    correct: bool
    tokens: int
    ended: bool


class Prediction(_Strict):
    """One row: what the model was asked, what it said, and the verdict."""

    id: str
    row: int
    prompt: str
    completion: str
    answer: Answer | None
    label: Literal[0, 1]
    correct: bool
    premise_id: str
    """The premise's text: rows with the same one are drawn together by the bootstrap."""
    hypothesis: str
    num_variables: int
    template: str
    steps: list[Step]
    true_share: float
    """Share of the steps before the first false one; 0 without steps."""
    tokens: int
    """Tokens of the completion, the end of turn included."""
    ended: bool
    """Whether the completion ended by itself, not at max_new_tokens."""
    p_yes: Annotated[float, Field(ge=0, le=1)] | None = None
    """Probability of Yes against No, where answers were scored by it."""
    samples: list[Sample] = Field(default_factory=list)
    """Where several completions were drawn: all of them; the row's own is the first."""


class Header(_Strict):
    """What was evaluated on what, and how."""

    model: str
    """Hub id or folder."""
    revision: str | None
    model_fingerprint: str
    """Hash of the model folder's contents; for a hub id the id and its revision."""
    recipe: str
    run: str
    stage: str
    """Name of the model in the comparison: base, a training stage, or a name given by hand."""
    data_fingerprint: str
    seed: int
    created: str
    generation: dict[str, int | float | str | bool]
    versions: dict[str, str]
    rows: int


@dataclass(frozen=True)
class Predictions:
    """A prediction file."""

    header: Header
    rows: list[Prediction]

    @property
    def answers(self) -> list[Answer | None]:
        """The parsed answers in row order."""
        return [row.answer for row in self.rows]

    @property
    def labels(self) -> list[int]:
        """The labels in row order."""
        return [row.label for row in self.rows]

    @property
    def premises(self) -> list[str]:
        """The cluster of each row."""
        return [row.premise_id for row in self.rows]


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write a prediction file whole or not at all. Raises UserError when it would not pass its own check."""
    check_rows(predictions, path)
    values = [{"header": predictions.header.model_dump()}, *(row.model_dump() for row in predictions.rows)]
    write_atomic(path, "".join(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n" for value in values))


def read_predictions(path: Path) -> Predictions:
    """Read and check a prediction file.

    Raises UserError for an absent or torn file, a line that is not JSON or holds NaN or infinity, a wrong field,
    missing or repeated rows, and a verdict that contradicts its answer and label; each names the row.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError("no such prediction file", value=path.name, where=str(path), do="run evaluate") from None
    except UnicodeDecodeError as error:
        raise UserError("not UTF-8 text", value=f"byte {error.start}", where=str(path), do=AGAIN) from None
    lines = text.removesuffix("\n").split("\n")  # not splitlines(): completions may hold other line separators
    first = _parse(lines[0], "line 1", path)
    if not isinstance(first, dict) or "header" not in first:
        _refuse("a prediction file begins with its header, not with", lines[0][:60], path)
    header = _build(Header, first["header"], "the header", path)
    rows = [_row(line, number, path) for number, line in enumerate(lines[1:], start=2)]
    predictions = Predictions(header, rows)
    check_rows(predictions, path)
    return predictions


def check_rows(predictions: Predictions, where: Path) -> None:
    """Raise UserError for missing or repeated rows and for verdicts that contradict answer and label."""
    header, rows = predictions.header, predictions.rows
    if len(rows) != header.rows:
        _refuse(f"{header.rows} rows are promised by the header, the file holds", len(rows), where)
    for repeated in (_repeated(row.id for row in rows), _repeated(row.row for row in rows)):
        if repeated:
            _refuse(f"{len(repeated)} rows stand more than once, the first", repeated[0], where)
    for row in rows:
        verdicts: list[Prediction | Sample] = [row, *row.samples]
        for each in verdicts:
            if each.correct != (each.answer == ("yes" if row.label == 1 else "no")):
                said = f"answer {each.answer}, label {row.label}, correct {each.correct}"
                _refuse(f"the verdict of row {row.row} (id {row.id}) contradicts itself", said, where)
        if len(row.samples) != len(rows[0].samples) or (row.samples and row.samples[0].completion != row.completion):
            what = f"row {row.row} (id {row.id}) has not as many samples as the first, or another completion than its"
            _refuse(f"{what} first one; samples", len(row.samples), where)


def _repeated(keys: Iterable[object]) -> list[object]:
    return [key for key, times in Counter(keys).items() if times > 1]


_SPECIAL = re.compile(r"<[^<>\s]{1,40}>|\[(?:PAD|UNK|EOS|BOS|CLS|SEP|MASK)\]", re.IGNORECASE)
_WORD = re.compile(r"\w")


def says_nothing(completion: str) -> bool:
    """Whether a completion has no letter or digit outside special tokens: empty, padding, `!!!!`."""
    return not _WORD.search(_SPECIAL.sub(" ", completion))


def speechless(name: str, predictions: Predictions) -> UserError | None:
    """What is wrong with a model none of whose completions says anything; None where one does.

    Such a model is broken (weights not finite, wrong tokenizer, padding taken for text): its F1 of 0 is no result.
    """
    rows = predictions.rows
    if not rows or not all(says_nothing(row.completion) for row in rows):
        return None
    return UserError(
        f"the model {name} only produces padding, in all of {len(rows)} rows", value=rows[0].completion[:40],
        where=predictions.header.model,
        do="its weights may not be finite, or the tokenizer another model's: look at the training log",
    )  # fmt: skip


def check_against(predictions: Predictions, rows: Sequence[Mapping[str, Any]], fingerprint: str, where: Path) -> None:
    """Raise UserError unless the predictions are for exactly these test rows of this data version, in this order."""
    if predictions.header.data_fingerprint != fingerprint:
        what = f"predictions for another version of the data: this run's is {fingerprint}, the file's"
        _refuse(what, predictions.header.data_fingerprint, where)
    wanted, found = [str(row["id"]) for row in rows], [row.id for row in predictions.rows]
    missing, foreign = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    if missing:
        _refuse(f"{len(missing)} of {len(wanted)} test rows have no prediction, the first", missing[0], where)
    if foreign:
        _refuse(f"{len(foreign)} predictions are for rows that are not in the test set, the first", foreign[0], where)
    if found != wanted:
        first = next(i for i, pair in enumerate(zip(found, wanted, strict=True)) if pair[0] != pair[1])
        _refuse(f"predictions in another order than the test set; row {first} should be {wanted[first]}, it is",
                found[first], where)  # fmt: skip
    for row, prediction in zip(rows, predictions.rows, strict=True):
        _same_row(row, prediction, where)


def read_all(
    paths: Iterable[Path], rows: Sequence[Mapping[str, Any]], fingerprint: str
) -> tuple[dict[str, Predictions], dict[str, str]]:
    """(the prediction files that answer exactly these test rows, why each other one is refused), by model name."""
    found: dict[str, Predictions] = {}
    refused: dict[str, str] = {}
    for path in paths:
        try:
            predictions = read_predictions(path)
            check_against(predictions, rows, fingerprint, path)
            found[path.stem] = predictions
        except UserError as error:
            refused[path.stem] = str(error)
    return found, refused


def _same_row(row: Mapping[str, Any], prediction: Prediction, where: Path) -> None:
    stated = prediction.model_dump() | {"premise": prediction.premise_id}
    for key in ("label", "prompt", "premise", "hypothesis", "num_variables", "template"):
        if row[key] != stated[key]:
            _refuse(
                f"row {prediction.row} (id {prediction.id}) differs from the test set in {key}: there "
                f"{str(row[key])[:60]!r}, in the file", str(stated[key])[:60], where,
            )  # fmt: skip


def _refuse(what: str, value: object, where: Path) -> NoReturn:
    raise UserError(what, value=value, where=str(where), do=AGAIN)


def _row(line: str, number: int, path: Path) -> Prediction:
    value = _parse(line, f"line {number}", path)
    name = f"row {value.get('row')} (line {number})" if isinstance(value, dict) else f"line {number}"
    return _build(Prediction, value, name, path)


def _parse(line: str, name: str, path: Path) -> Any:
    def not_finite(text: str) -> NoReturn:
        _refuse(f"{name} holds a number that is not finite", text, path)

    try:
        return json.loads(line, parse_constant=not_finite)
    except json.JSONDecodeError:
        _refuse(f"{name} is not JSON (a torn file?)", line[-60:], path)


def _build(model: type[Record], value: Any, name: str, path: Path) -> Record:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        _refuse(f"{name}, {field}: {first['msg']}", str(first["input"])[:60], path)
