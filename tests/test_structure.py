"""The limits of the house: sizes, layers, cycles, what the launcher may import."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

HOME = Path(__file__).parent.parent
FILES = sorted((HOME / "pipeline").rglob("*.py"))
MODULES = {".".join(p.relative_to(HOME).with_suffix("").parts).removesuffix(".__init__"): p for p in FILES}
LAYERS = [
    {"errors"},
    {
        "causal",
        "run",
        "run_paths",
        "flat_keys",
        "recipe_model",
        "remedies",
        "dag",
        "recipe",
        "recipe_contrastive",
        "recipe_data",
        "recipe_evaluate",
        "recipe_rewards",
        "recipe_rl",
        "recipe_stage",
        "recipe_questions",
        "question_recipe",
        "cluster",
        "records",
        "settings",
        "load",
        "trainer_options",
        "translate",
        "snapshot",
    },
    {"training", "tasks", "rewards"},
    {"submit", "fit", "evaluation", "stages", "scoring"},
    {"cli", "script", "show", "verbs", "__main__"},
]
HEAVY = {"torch", "transformers", "trl", "datasets", "peft", "accelerate", "deepspeed", "vllm"}


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def layer(module: str) -> int:
    return next(i for i, rooms in enumerate(LAYERS) if room(module) in rooms)


@cache
def imports(module: str) -> frozenset[str]:
    """Modules of the project that a module imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            named = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name for name in named if name in MODULES} or {node.module} & MODULES.keys()
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names} & MODULES.keys()
    return frozenset(found - {module})


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(HOME)))
def test_file_and_function_sizes(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno + 1 <= 60, node.name


@pytest.mark.parametrize("module", sorted(m for m in MODULES if room(m)))
def test_imports_go_one_way(module: str) -> None:
    above = {other: layer(other) for other in imports(module) if room(other) and layer(other) > layer(module)}
    assert not above


def test_no_import_cycle() -> None:
    state: dict[str, int] = {}

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert state.get(module) != 1, " -> ".join((*path, module))
        if module not in state:
            state[module] = 1
            for other in imports(module):
                visit(other, (*path, module))
            state[module] = 2

    for module in MODULES:
        visit(module, ())


def test_only_run_joins_the_paths_of_a_run() -> None:
    folders = ("logs", "models", "evaluation_results", "processed")
    joins = [
        f"{path.name}:{node.lineno}"
        for path in FILES
        if path.name not in ("run.py", "run_paths.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div)
        if isinstance(node.right, ast.Constant) and node.right.value in folders
    ]
    assert not joins


def test_the_launcher_imports_nothing_heavy() -> None:
    code = (
        "import sys, pipeline.cli, pipeline.submit.plan, pipeline.submit.sbatch, pipeline.submit.slurm,"
        " pipeline.submit.local, pipeline.submit.status;"
        "from pipeline.cli import main;"
        f"print(sorted(set(sys.modules) & {HEAVY}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=HOME, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_pickle_and_no_broad_except_outside_the_cli() -> None:
    """Inside the sandbox whatever untrusted code raises is an answer."""
    for path in FILES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                assert not {alias.name for alias in node.names} & {"pickle", "dill"}, path
            if isinstance(node, ast.ExceptHandler) and path.name != "cli.py" and path.parent.name != "sandboxed":
                name = ast.unparse(node.type) if node.type else ""
                assert name not in ("", "Exception", "BaseException"), f"{path}:{node.lineno}"
