"""Rows of either kind, Corr2Cause's and published questions, as preprocess puts them and as later stages read them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.causal.generate import Row
from pipeline.errors import UserError
from pipeline.recipe import Recipe
from pipeline.tasks import corr2cause
from pipeline.tasks.questions import Question, Questions

AnyRow = Row | Question


def message(recipe: Recipe, row: AnyRow) -> str:
    """The user message for a row."""
    if isinstance(row, Question):
        return row.message
    return corr2cause.message(row.premise, row.hypothesis, recipe.data.prompt)


def record(row: AnyRow, index: int) -> dict[str, Any]:
    """What is written of a row beside its message and prompt: its id, and what it is judged by."""
    if isinstance(row, Question):
        name = f"{row.task}/{row.number}"
        return {"id": f"{name}/{index}", "row": index, "task": row.task, "template": row.template, "published": row.row}
    return {
        "id": f"{row.mec}/{index}",
        "row": index,
        "premise": row.premise,
        "hypothesis": row.hypothesis,
        "label": row.label,
        "num_variables": row.num_variables,
        "template": row.template,
        "mec": row.mec,
        "input": row.input,
    }


def counts(rows: Sequence[AnyRow]) -> dict[str, Any]:
    """What the rows of one part are, in numbers."""
    questions = [row for row in rows if isinstance(row, Question)]
    if questions:
        tasks = {task: sum(row.task == task for row in questions) for task in sorted({row.task for row in questions})}
        return {"rows": len(questions), "tasks": tasks}
    causal = [row for row in rows if isinstance(row, Row)]
    sizes = sorted({row.num_variables for row in causal})
    return {
        "rows": len(causal),
        "valid": sum(row.label for row in causal),
        "classes": len({row.mec for row in causal}),
        "premises": len({row.premise for row in causal}),
        "variables": {n: sum(row.num_variables == n for row in causal) for n in sizes},
    }


def question_completions(questions: Questions, stages: Sequence[str]) -> dict[str, list[str]]:
    """The published solution for each row of each SFT stage; rows without one are taken out.

    Raises UserError where none has one.
    """
    completions: dict[str, list[str]] = {}
    for name in stages:
        pairs = [(row, solution) for row in questions.rows[name] if (solution := row.completion)]
        questions.leave_out(f"{name}: the row has no solution to learn from", len(questions.rows[name]) - len(pairs))
        if not pairs:
            raise UserError("no row has a solution to learn from", value=name, where="data", do="use another data set")
        questions.rows[name] = [row for row, _ in pairs]
        completions[name] = [solution for _, solution in pairs]
    return completions
