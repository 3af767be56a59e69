"""Tasks whose answers are right or wrong: prediction files, accuracy and pass@k with intervals, differences."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.errors import StageFailed, UserError
from pipeline.evaluation.compare import compared_pairs
from pipeline.evaluation.metrics import CONFIDENCE, mcnemar
from pipeline.evaluation.predictions import AGAIN, Header, says_nothing
from pipeline.evaluation.schema import BASE, Comparison, Interval, SolvedPair, SolvedResult
from pipeline.records import write_atomic
from pipeline.run import now

POWERS = (1, 2, 4, 5, 8, 10, 16, 32, 50, 64, 100, 128, 200)
"""The k of pass@k that are given, as far as there are so many answers; the number of answers too."""

Values = NDArray[np.float64]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Answer(_Strict):
    """One completion for a row, and the verdict."""

    completion: str
    parsed: str | None
    correct: bool | None
    reason: str
    share: float
    tokens: int
    ended: bool


class Solved(_Strict):
    """One row: what was asked, and what the model answered."""

    id: str
    row: int
    task: str
    prompt: str
    answers: list[Answer]


class SolvedFile(_Strict):
    """A prediction file: as many answers for each row."""

    header: Header
    rows: list[Solved]


def write_solved(path: Path, solved: SolvedFile) -> None:
    """Write a prediction file whole or not at all: the header, then one row a line."""
    values = [{"header": solved.header.model_dump()}, *(row.model_dump() for row in solved.rows)]
    write_atomic(path, "".join(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n" for value in values))


def read_solved(path: Path, rows: Sequence[Mapping[str, Any]], fingerprint: str) -> SolvedFile:
    """The predictions in a file, for exactly these rows of this data version. Raises UserError naming what differs."""
    lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    try:
        first, *rest = [json.loads(line) for line in lines]
        found = SolvedFile.model_validate({"header": first["header"], "rows": rest})
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        told = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise UserError("not a prediction file", value=told[:80], where=str(path), do=AGAIN) from None
    if found.header.data_fingerprint != fingerprint:
        raise UserError("predictions for another version of the data", value=found.header.data_fingerprint,
                        where=str(path), do=AGAIN)  # fmt: skip
    asked, wanted = [(r.id, r.prompt) for r in found.rows], [(str(row["id"]), str(row["prompt"])) for row in rows]
    if asked != wanted or len({len(row.answers) for row in found.rows}) > 1:
        raise UserError("predictions for other rows than the test set's", value=len(asked), where=str(path), do=AGAIN)
    return found


def pass_at_k(answers: int, right: int, k: int) -> float:
    """Chance that of k answers drawn from these without replacement one is right (Chen et al. 2021, arXiv 2107.03374).

    Raises ValueError for k above the number of answers.
    """
    if k > answers:
        raise ValueError(f"pass@{k} needs {k} answers, there are {answers}")
    return 1 - comb(answers - right, k) / comb(answers, k)


def graded(rows: Sequence[Solved]) -> list[Solved]:
    """The rows whose reference can be graded."""
    return [row for row in rows if row.answers[0].correct is not None]


def chances(rows: Sequence[Solved], k: int) -> Values:
    """(rows,): pass@k of each."""
    return np.array([pass_at_k(len(r.answers), sum(a.correct is True for a in r.answers), k) for r in rows])


def mean_interval(values: Values, resamples: int, seed: int, low: float = 0.0) -> Interval:
    """The mean of (rows,) values and its percentile interval by drawing rows; the whole range of one row."""
    value = float(values.mean()) if values.size else 0.0
    if values.size < 2:
        return Interval(value=value, low=low, high=1.0)
    rng, drawn = np.random.default_rng(seed), np.empty(resamples)
    for i in range(resamples):
        drawn[i] = values[rng.integers(values.size, size=values.size)].mean()
    tail = (1 - CONFIDENCE) / 2
    lower, upper = np.quantile(drawn, [tail, 1 - tail])
    return Interval(value=value, low=float(lower), high=float(upper))


def solved_result(rows: Sequence[Solved], resamples: int, seed: int) -> SolvedResult:
    """Everything that is counted of one model."""
    counted = graded(rows)
    answers = [answer for row in rows for answer in row.answers]
    drawn = len(rows[0].answers)
    ks = sorted({*(k for k in POWERS if k <= drawn), drawn}) if drawn > 1 else []
    shares = [answer.share for row in counted for answer in row.answers]
    return SolvedResult(
        accuracy=mean_interval(chances(counted, 1), resamples, seed),
        pass_at={str(k): mean_interval(chances(counted, k), resamples, seed) for k in ks},
        share=float(np.mean(shares)) if shares else 0.0,
        rows=len(rows),
        not_graded=len(rows) - len(counted),
        unparsable=sum(answer.parsed is None for answer in answers),
        mean_completion_tokens=float(np.mean([answer.tokens for answer in answers])),
        truncated=sum(not answer.ended for answer in answers),
    )


def solved_pair(first: str, one: Sequence[Solved], second: str, two: Sequence[Solved], resamples: int, seed: int
                ) -> SolvedPair:  # fmt: skip
    """One model against another on the same rows."""
    ones, twos = graded(one), graded(two)
    accuracy = mean_interval(chances(ones, 1) - chances(twos, 1), resamples, seed, low=-1.0)
    pairs = [(bool(a.answers[0].correct), bool(b.answers[0].correct)) for a, b in zip(ones, twos, strict=True)]
    fixed, broken = sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
    return SolvedPair(
        first=first, second=second, accuracy=accuracy, fixed=fixed, broken=broken, mcnemar_p=mcnemar(fixed, broken),
        verdict=accuracy.verdict,
    )  # fmt: skip


def compare_solved(
    files: Mapping[str, SolvedFile],
    stages: Sequence[str],
    task: str,
    resamples: int,
    seed: int,
    refused: Mapping[str, str],
) -> Comparison:
    """Compare models by name on the same rows; `stages` are the recipe's training stages in order.

    Each stage is set against those before it, other models against the base model. A model that says nothing in any
    row is named in `refused` and not counted. Raises UserError when all say nothing, StageFailed when there is none.
    """
    order = [name for name in (BASE, *stages) if name in files]
    order += sorted(set(files) - set(order))
    silent = {name: _silent(name, files[name]) for name in order if _says_nothing(files[name])}
    counted = [name for name in order if name not in silent]
    if silent and not counted:
        raise next(iter(silent.values()))
    if not counted:
        raise StageFailed(next(iter(refused.values()), "no model has predictions"))
    first = files[counted[0]]
    return Comparison(
        run=first.header.run,
        recipe=first.header.recipe,
        task=task,
        created=now(),
        data={
            "fingerprint": first.header.data_fingerprint,
            "rows": len(first.rows),
            "tasks": sorted({row.task for row in first.rows}),
            "resamples": resamples,
            "seed": seed,
        },
        models={},
        solved={name: solved_result(files[name].rows, resamples, seed) for name in counted},
        solved_pairs={
            f"{one}-{two}": solved_pair(one, files[one].rows, two, files[two].rows, resamples, seed)
            for one, two in compared_pairs(counted, stages)
        },
        refused={**refused, **{name: str(why) for name, why in silent.items()}},
    )


def _says_nothing(solved: SolvedFile) -> bool:
    return all(says_nothing(answer.completion) for row in solved.rows for answer in row.answers)


def _silent(name: str, solved: SolvedFile) -> UserError:
    return UserError(
        f"the model {name} only produces padding, in all of {len(solved.rows)} rows", where=solved.header.model,
        do="its weights may not be finite, or the tokenizer another model's: look at the training log",
    )  # fmt: skip
