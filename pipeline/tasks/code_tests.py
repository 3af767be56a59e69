"""Tests of code data sets as statements that can be run apart from what they test; made from their source alone."""

from __future__ import annotations

import ast
import threading
from collections.abc import Iterable

from pipeline.errors import UserError
from pipeline.rewards.sandbox import Checks, Outcome, Program, shared_sandbox
from pipeline.tasks.score import Score

_PARSING = threading.Lock()
"""Two threads never parse at once: CPython 3.11 counts the depth of both in one place and ends with SystemError."""


def statements(body: Iterable[ast.stmt], names: Iterable[str]) -> tuple[tuple[str, bool], ...]:
    """The statements in order; tests are those that assert something and mention one of `names`.

    One loop of assertions is one test; `assert True` is none.
    """
    wanted = set(names)
    return tuple((ast.unparse(each), _is_test(each, wanted)) for each in body)


def _is_test(statement: ast.stmt, names: set[str]) -> bool:
    parts = list(ast.walk(statement))
    mentioned = {part.id for part in parts if isinstance(part, ast.Name)}
    return any(isinstance(part, ast.Assert) for part in parts) and bool(mentioned & names)


def parse(source: str, field: str) -> ast.Module:
    """The syntax of a field of a row. Raises UserError when it is no Python."""
    try:
        with _PARSING:
            return ast.parse(source)
    except SyntaxError as error:
        raise UserError(f"field `{field}` is no Python", value=str(error), do="mend this row") from None


def imports_of(tree: ast.Module) -> str:
    """The import statements at the top of a program."""
    return "\n".join(ast.unparse(each) for each in tree.body if isinstance(each, ast.Import | ast.ImportFrom))


def defined_by(tree: ast.Module) -> set[str]:
    """The functions and classes that a program defines."""
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    return {each.name for each in tree.body if isinstance(each, kinds)}


def used_by(tests: ast.Module) -> set[str]:
    """The names that tests mention."""
    return {part.id for part in ast.walk(tests) if isinstance(part, ast.Name)}


def judged(code: str | None, program: Program | None, tests: Checks) -> Score:
    """The verdict of the tests on a program; without one it is incorrect, without tests it cannot be graded.

    Raises UserError where no sandbox can be made, StageFailed when the tests themselves do not run.
    """
    if not any(is_test for _, is_test in tests.statements):
        return Score(None, code, "the row has no test")
    if program is None:
        return Score(False, None, "the completion has no program")
    outcome = shared_sandbox().run(program, tests)
    return _scored(code, outcome)


def _scored(code: str | None, outcome: Outcome) -> Score:
    right, count = sum(outcome.passed), len(outcome.passed)
    why = f": {outcome.reason}" if outcome.reason else ""
    return Score(right == count, code, f"{right} of {count} tests passed{why}", outcome.share)
