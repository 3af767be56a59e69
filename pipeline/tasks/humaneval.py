"""HumanEval (Chen et al. 2021, arXiv 2107.03374): the body of a function, tested by `check(candidate)`."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from pipeline.errors import UserError
from pipeline.rewards.sandbox import Checks, Program
from pipeline.tasks.code_tests import judged, parse, statements
from pipeline.tasks.code_text import defines, program_of
from pipeline.tasks.example import Example
from pipeline.tasks.score import Score

SPLITS = ("test",)
FORMATS = ({"prompt": str, "entry_point": str, "test": str},)
TEMPLATE = "code_block"


def example(row: Mapping[str, Any]) -> Example:
    """Complete this function; the reference solution in a block."""
    solution = row.get("canonical_solution")
    question = f"Complete this Python function.\n\n```python\n{row['prompt'].strip()}\n```"
    return Example(question, f"```python\n{row['prompt']}{solution}```" if solution else None)


@lru_cache(maxsize=256)
def tests_of(prompt: str, entry_point: str, test: str) -> Checks:
    """The assertions of `check`, one by one; the helpers of the prompt and of the tests stand where they run.

    Raises UserError for tests that are no Python or have no `check`.
    """
    tree = parse(test, "test")
    check = next((each for each in tree.body if isinstance(each, ast.FunctionDef) and each.name == "check"), None)
    if check is None or not check.args.args:
        raise UserError("field `test` defines no check(candidate)", value=test[:60], do="mend this row")
    helpers = "\n".join(ast.unparse(each) for each in tree.body if each is not check)
    names = {check.args.args[0].arg: entry_point, entry_point: entry_point}
    return Checks(f"{prompt}\n    pass\n{helpers}", names, statements(check.body, names))


def score(completion: str, row: Mapping[str, Any]) -> Score:
    """Run the row's tests on a completion: the whole function, in a block or not, or the text after the prompt."""
    name = row["entry_point"]
    code = program_of(completion, name)
    tests = tests_of(row["prompt"], name, row["test"])
    if code is None:
        return judged(None, None, tests)
    whole = defines(code, name)
    source = f"{row['prompt']}\n    pass\n{code}" if whole else row["prompt"] + code
    return judged(code, Program(source, trim="```" not in completion), tests)
