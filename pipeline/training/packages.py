"""Packages that a recipe needs beyond those that every run needs: looked for before anything is submitted."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

from pipeline.errors import UserError
from pipeline.recipe import Recipe
from pipeline.settings import collect

EIGHT_BIT = ("8bit", "paged_", "bnb")
"""Parts of the names of optimizers that bitsandbytes brings."""


def is_installed(package: str) -> bool:
    """Whether a package can be imported; nothing is imported."""
    return find_spec(package) is not None


def check_packages(recipe: Recipe, installed: Callable[[str], bool] = is_installed) -> None:
    """Raise UserErrors, one for each package that a recipe needs and that is not installed."""
    needed: list[tuple[str, str, object, str]] = []
    if recipe.model.quantization != "none":
        needed.append(("bitsandbytes", "model.quantization", recipe.model.quantization, "requirements.txt"))
    for name in recipe.training_stages():
        optimizer = str(recipe.trainer_options(name).get("optim", ""))
        if any(part in optimizer for part in EIGHT_BIT):
            needed.append(("bitsandbytes", f"{name}.optim", optimizer, "requirements.txt"))
        if recipe.resources[name].deepspeed:
            needed.append(("deepspeed", f"resources.{name}.deepspeed", recipe.resources[name].deepspeed,
                           "requirements.txt"))  # fmt: skip
        if (generation := getattr(recipe.own(name), "generation", "")).startswith("vllm"):
            needed.append(("vllm", f"{name}.generation", generation, "requirements-vllm.txt"))
    collect([partial(_refuse, *each) for each in needed if not installed(each[0])])


def _refuse(package: str, where: str, value: object, file: str) -> None:
    raise UserError(f"{package} is not installed, which is needed for", value=value, where=where,
                    do=f"pip install -r {file}, or change {where}")  # fmt: skip
