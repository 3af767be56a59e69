"""The scripts that are checked in under slurm/: every stage of the named recipes, and evaluate."""

from __future__ import annotations

from pathlib import Path

from pipeline.load import load_recipe, recipe_file
from pipeline.records import write_atomic
from pipeline.submit.sbatch import evaluate_script, stage_script

RENDERED = ("tiny", "qwen", "phi3", "deepseek", "gsm8k-dpo", "math-ppo")
"""Recipes whose scripts are checked in; `run` makes those of any other."""


def scripts(home: Path) -> dict[Path, str]:
    """Path and text of every checked-in script."""
    made = {home / "slurm" / "evaluate.slurm": evaluate_script()}
    for name in RENDERED:
        recipe = load_recipe(recipe_file(home, name))
        for entry in recipe.stages:
            made[home / "slurm" / f"{entry.name}_{name}.slurm"] = stage_script(recipe, name, entry.name)
    return made


def render_all(home: Path, *, write: bool) -> list[Path]:
    """The scripts whose file is not current, which are written when `write`."""
    changed = [
        path for path, text in scripts(home).items() if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    if write:
        texts = scripts(home)
        for path in changed:
            write_atomic(path, texts[path])
    return changed
