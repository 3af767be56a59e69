"""MBPP (Austin et al. 2021, arXiv 2108.07732), whole or sanitized: small functions, tested by assertions."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from pipeline.rewards.sandbox import Checks, Program
from pipeline.tasks.code_tests import defined_by, imports_of, judged, parse, statements, used_by
from pipeline.tasks.code_text import program_of
from pipeline.tasks.example import Example
from pipeline.tasks.score import Score

SPLITS = ("train", "validation", "test", "prompt")
FORMATS = ({"prompt": str, "code": str, "test_list": list}, {"text": str, "code": str, "test_list": list})
TEMPLATE = "code_block"

_FIRST_OF_SPLIT = {"prompt": 1, "test": 11, "validation": 511, "train": 601}
"""The paper's division by task_id, in ascending order."""


def example(row: Mapping[str, Any]) -> Example:
    """The task with its tests, which name the function; the reference code in a block."""
    tests = "\n".join(row["test_list"])
    question = f"{row.get('prompt') or row['text']}\n\nThe function must pass these tests:\n\n```python\n{tests}\n```"
    return Example(question, f"```python\n{row['code'].strip()}\n```")


def split_of(row: Mapping[str, Any]) -> str:
    """The split of a row by its task_id."""
    return [name for name, first in _FIRST_OF_SPLIT.items() if int(row["task_id"]) >= first][-1]


@lru_cache(maxsize=1024)
def tests_of(code: str, imports: str, assertions: tuple[str, ...]) -> Checks:
    """The assertions, one test each; what they use and the reference code defines is the tested program's.

    Raises UserError for tests or code that are no Python.
    """
    reference, tests = parse(code, "code"), parse("\n".join(assertions), "test_list")
    names = defined_by(reference) & used_by(tests)
    context = "\n".join((imports_of(reference), imports))
    return Checks(context, {name: name for name in sorted(names)}, statements(tests.body, names))


def score(completion: str, row: Mapping[str, Any]) -> Score:
    """Run the row's tests on the program of a completion."""
    setup = row.get("test_imports") or [row.get("test_setup_code") or ""]
    tests = tests_of(row["code"].replace("\r", ""), "\n".join(setup), tuple(row["test_list"]))
    code = program_of(completion, next(iter(tests.names), None))
    return judged(code, Program(code, trim="```" not in completion) if code else None, tests)
