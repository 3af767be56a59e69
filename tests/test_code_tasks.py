"""Code tasks through the verb `score`: real reference solutions pass, stubs do not; what a completion's program is."""

from __future__ import annotations

import gc
import gzip
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import main
from pipeline.errors import UserError
from pipeline.tasks import humaneval, mbpp
from pipeline.tasks.code_tests import parse
from pipeline.tasks.code_text import program_of
from pipeline.tasks.names import score, score_all

REAL = Path(__file__).parent.parent.parent / "shared/data"


def real(name: str) -> list[dict[str, Any]]:
    """Rows of a real file; skips, saying so, where it is absent."""
    path = REAL / name
    if not path.is_file():
        pytest.skip(f"REAL DATA ABSENT: {path}")
    if path.suffix == ".gz":
        return [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode().splitlines()]
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return rows


def scored(task: str, pairs: list[tuple[dict[str, Any], str]], folder: Path) -> list[dict[str, Any]]:
    """The verb's output for (row, completion) pairs."""
    path, out = folder / "in.jsonl", folder / "out.jsonl"
    path.write_text("".join(json.dumps({"row": row, "completion": text}) + "\n" for row, text in pairs))
    assert main(["score", task, str(path), "--out", str(out)]) == 0
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


def test_all_reference_solutions_of_humaneval_pass_and_no_stub_does(tmp_path: Path) -> None:
    rows = real("humaneval/HumanEval.jsonl.gz")
    references = [(row, row["canonical_solution"]) for row in rows]
    stubs = [(row, "    pass\n") for row in rows]
    found = scored("humaneval", references + stubs, tmp_path)
    assert [each["row"]["task_id"] for each in found] == 2 * [row["task_id"] for row in rows]
    assert [each["correct"] for each in found] == [True] * 164 + [False] * 164


def test_all_reference_solutions_of_mbpp_pass(tmp_path: Path) -> None:
    rows = real("mbpp/sanitized-mbpp.json")
    found = scored("mbpp", [(row, mbpp.example(row).solution or "") for row in rows], tmp_path)
    assert [each["correct"] for each in found] == [True] * 427


ADD = {
    "task_id": 9,
    "prompt": "Write a function to add.",
    "code": "def add(a, b):\n    return a + b",
    "test_imports": [],
    "test_list": ["assert add(1, 2) == 3", "assert add(0, 0) == 0", "assert add(-1, 1) == 0"],
}
CHECK = {
    "task_id": "HumanEval/999",
    "prompt": 'def half(x):\n    """Half."""\n    return x / 2\n\n\ndef quarter(x):\n    """A quarter."""\n',
    "entry_point": "quarter",
    "canonical_solution": "    return half(half(x))\n",
    "test": "def check(candidate):\n    assert True\n    for x in (4, 8): assert candidate(x) == half(half(x))\n"
    "    assert candidate(0) == 0\n",
}


def _collected(phase: str, found: dict[str, int]) -> None:
    """Python code that the collector of rubbish runs, as torch and others have it."""


def test_threads_parse_rows_at_the_same_time() -> None:
    """CPython 3.11 ends with SystemError where two threads make syntax trees at once and the collector comes by."""
    body = "".join(f"    if x > {each}:\n        return g(x, [1, (2, {{3: 4}})])\n" for each in range(60))
    interval, thresholds = sys.getswitchinterval(), gc.get_threshold()
    gc.callbacks.append(_collected)
    try:
        gc.set_threshold(5)
        sys.setswitchinterval(1e-6)
        with ThreadPoolExecutor(4) as pool:
            trees = list(pool.map(lambda _: parse(f"def f(x):\n{body}", "code"), range(300)))
    finally:
        sys.setswitchinterval(interval)
        gc.set_threshold(*thresholds)
        gc.callbacks.remove(_collected)
    assert {len(tree.body) for tree in trees} == {1}


@pytest.mark.parametrize(
    ("completion", "correct", "share"),
    [
        ("def add(a, b):\n    return a + b", True, 1),
        ("Sure.\n```python\ndef add(a, b):\n    return a + b\n```\nIt adds.", True, 1),
        ("```python\ndef add(a, b):\n    return a + b\n```\n```python\nprint(add(1, 2))\n```", True, 1),
        ("```python\ndef add(a, b):\n    return a + b\n```\n```\n3\n```", True, 1),
        ("<think>```python\ndef add(a, b): return 0\n```</think>```python\ndef add(a, b): return a + b", True, 1),
        ("def add(a, b):\n    return a + b\n\nThis adds two numbers.", True, 1),
        ("def add(a, b):\n    return abs(a) + abs(b)", False, 2 / 3),
        ("def add(a, b):\n    return 7", False, 0),
        ("def sum(a, b):\n    return a + b", False, 0),
        ("I cannot do that.", False, 0),
        ("", False, 0),
    ],
)
def test_a_completion_passes_by_its_program(completion: str, correct: bool, share: float) -> None:
    verdict = score("mbpp", completion, ADD)
    assert (verdict.correct, verdict.share) == (correct, share), verdict
    assert (verdict.parsed is None) == (completion == "")


@pytest.mark.parametrize(
    ("completion", "share"),
    [
        ("    return half(half(x))\n", 1),
        ("    return x / 4\n\nprint(quarter(8))\n", 1),
        ("    return x / 4\n\n# Example:\nso quarter(8) is 2", 1),
        ("```python\ndef quarter(x):\n    return half(x) / 2\n```", 1),
        ("    return 0\n", 0.5),
        ("def half(x):\n    return 0\n\ndef quarter(x):\n    return 0\n", 0.5),
    ],
)
def test_humaneval_takes_bodies_and_whole_functions(completion: str, share: float) -> None:
    """`assert True` is no test; the helper of the tests is that of the prompt, whatever the completion makes of it."""
    verdict = score("humaneval", completion, CHECK)
    assert (verdict.correct, verdict.share) == (share == 1, share), verdict


def test_rows_whose_tests_are_broken_are_named() -> None:
    with pytest.raises(UserError, match=r"field `test_list` is no Python"):
        score("mbpp", "x", ADD | {"test_list": ["assert ("]})
    with pytest.raises(UserError, match=r"field `test` defines no check"):
        score("humaneval", "x", CHECK | {"test": "x = 1"})
    assert score("mbpp", "x", ADD | {"test_list": []}).correct is None


def test_many_are_judged_in_their_order() -> None:
    texts = [f"def add(a, b): return a + b + {k % 3}" for k in range(12)]
    verdicts = score_all([("mbpp", text, ADD) for text in texts])
    assert [one.correct for one in verdicts] == [k % 3 == 0 for k in range(12)]


@pytest.mark.parametrize(
    ("completion", "program"),
    [
        ("```py\nx = 1\n```", "x = 1\n"),
        ("```bash\nls\n```\n```\nx = 1\n```", "x = 1\n"),
        ("```python\nf = 1\n```\n```python\ng = 2\n```", "f = 1\n"),
        ("  ```python\n  x\n  ```", "  x\n"),
        ("x = 1", "x = 1"),
        (" \n", None),
    ],
)
def test_the_program_of_a_completion(completion: str, program: str | None) -> None:
    assert program_of(completion, "f") == program


def test_examples_ask_for_what_their_tests_want() -> None:
    assert "assert add(1, 2) == 3" in mbpp.example(ADD).question
    made = humaneval.example(CHECK)
    assert score("humaneval", made.solution or "", CHECK).correct is True
    assert [mbpp.split_of({"task_id": n}) for n in (2, 11, 510, 511, 600, 601, 974)] == [
        "prompt", "test", "test", "validation", "validation", "train", "train",
    ]  # fmt: skip
