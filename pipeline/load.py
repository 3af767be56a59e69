"""YAML file + overrides -> Recipe: checked wholly before anything is submitted, every error at once."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.flat_keys import flat_recipe, is_flat
from pipeline.question_recipe import check_questions
from pipeline.recipe import KINDS, NAME_PATTERN, Recipe, Resources, StageEntry
from pipeline.recipe_rl import check_smoothing
from pipeline.settings import Tree, collect, merge, nearest, override_tree, raise_all, read_yaml, validate
from pipeline.trainer_options import check_option

MOVED = {"path": "source"}
"""Keys of `data` that have another spelling now."""


def recipe_file(home: Path, word: str) -> Path:
    """The file of a recipe given by name (configs/NAME.yaml) or by path. Raises UserError when there is none."""
    by_path = Path(word)
    if by_path.suffix in (".yaml", ".yml"):
        if by_path.is_file():
            return by_path.resolve()
        raise UserError("no such recipe file", value=word, where=str(Path.cwd()), do="check the path")
    by_name = home / "configs" / f"{word}.yaml"
    if NAME_PATTERN.fullmatch(word) and by_name.is_file():
        return by_name
    known = recipe_names(home)
    close = difflib.get_close_matches(word, known, n=1)
    hint = f"did you mean {close[0]}?" if close else "recipes: " + ", ".join(known)
    raise UserError("unknown recipe", value=word, where=str(home / "configs"), do=hint)


def recipe_names(home: Path) -> list[str]:
    """Names of the recipes in configs/."""
    return sorted(path.stem for path in (home / "configs").glob("*.yaml") if not path.stem.startswith("cluster"))


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read, override and check a recipe; a file of flat keys is one too. Raises UserErrors that name every problem."""
    tree = read_yaml(path)
    tree = flat_recipe(tree, path.name) if is_flat(tree) else tree
    for override in overrides:
        tree = merge(tree, override_tree(override))
    where = path.name + (" with the overrides given" if overrides else "")
    return build_recipe(path.stem, tree, where)


def build_recipe(name: str, tree: Tree, where: str) -> Recipe:
    """A Recipe from the mapping of its file. Raises UserErrors that name every problem."""
    tree = dict(tree)
    entries = stage_entries(tree.pop("stages", None), where)
    names = [entry.name for entry in entries]
    sections = {entry.name: tree.pop(entry.name, None) or {} for entry in entries}
    resources = tree.pop("resources", None) or {}
    common = {"name": name, **_moved_keys(tree), "stages": [], "sections": {}, "resources": {}}
    made: dict[str, Any] = {}

    unknown = [key for key in tree if key not in Recipe.model_fields]

    def check_common() -> None:
        made["recipe"] = validate(Recipe, {k: v for k, v in common.items() if k not in unknown}, where)

    checks: list[Callable[[], object]] = [partial(_unknown_top, key, names, where) for key in unknown]
    checks += [check_common]
    checks += [partial(_check_section, entry, sections[entry.name], where) for entry in entries]
    checks += [partial(_check_resources, key, value, names, where) for key, value in _items(resources, where)]
    collect(checks)
    recipe: Recipe = made["recipe"]
    kinds = {entry.name: entry.kind for entry in entries}
    wrong = check_questions(recipe, sections, kinds)
    collect([partial(_check_rows, recipe, names, where), partial(raise_all, wrong)])
    return recipe.model_copy(
        update={
            "stages": entries,
            "sections": sections,
            "resources": {n: Resources.model_validate(resources.get(n) or {}) for n in names},
        }
    )


def dump_recipe(recipe: Recipe) -> Tree:
    """The mapping that `build_recipe` reads back to an equal recipe."""
    plain = recipe.model_dump(exclude={"name", "sections"})
    plain["stages"] = [entry.model_dump(exclude_none=True) for entry in recipe.stages]
    return {**plain, **{name: section for name, section in recipe.sections.items() if section}}


def stage_entries(value: Any, where: str) -> list[StageEntry]:
    """The `stages` list of a recipe. Raises UserErrors for unknown kinds, repeated names, absent needs."""
    if not isinstance(value, list) or not value:
        raise UserError("stages must be a list", value=value, where=where, do="for example [preprocess, sft, evaluate]")
    entries = [_stage_entry(item, where) for item in value]
    seen: list[str] = []
    for entry in entries:
        if entry.name in seen:
            raise UserError("two stages have one name", value=entry.name, where=f"stages in {where}", do="rename one")
        for need in entry.needs or []:
            if need not in seen:
                raise UserError(
                    f"stage {entry.name} needs a stage that does not stand before it", value=need,
                    where=f"stages in {where}", do=nearest(need, seen),
                )  # fmt: skip
        seen.append(entry.name)
    return entries


def _stage_entry(item: Any, where: str) -> StageEntry:
    tree = {"name": item, "kind": item} if isinstance(item, str) else item
    if isinstance(tree, dict):
        tree = {"kind": tree.get("name"), **tree}
    entry = validate(StageEntry, tree, where, "stages.")
    if entry.kind not in KINDS:
        raise UserError(
            "unknown stage kind", value=entry.kind, where=f"stages in {where}", do=nearest(entry.kind, KINDS)
        )
    reserved = entry.name in Recipe.model_fields or entry.name in ("dev", "test")
    if reserved or not NAME_PATTERN.fullmatch(entry.name):
        raise UserError(
            "not a stage name", value=entry.name, where=f"stages in {where}", do="use letters, digits, . _ -"
        )
    return entry


def _moved_keys(tree: Tree) -> Tree:
    data = tree.get("data")
    if not isinstance(data, dict):
        return tree
    return {**tree, "data": {MOVED.get(key, key): value for key, value in data.items()}}


def _unknown_top(key: str, names: list[str], where: str) -> None:
    raise UserError("unknown key", value=key, where=where, do=nearest(key, [*Recipe.model_fields, *names]))


def _items(resources: Any, where: str) -> list[tuple[str, Any]]:
    if not isinstance(resources, dict):
        raise UserError(
            "resources must be a mapping of stages", value=resources, where=where, do="see configs/tiny.yaml"
        )
    return list(resources.items())


def _check_resources(key: str, value: Any, names: list[str], where: str) -> None:
    if key not in names:
        raise UserError("resources for an unknown stage", value=key, where=where, do=nearest(key, names))
    validate(Resources, value or {}, where, f"resources.{key}.")


def _check_section(entry: StageEntry, section: Any, where: str) -> None:
    if not isinstance(section, dict):
        raise UserError("a section must be a mapping", value=section, where=f"{entry.name} in {where}", do="key: value")
    model = KINDS[entry.kind]
    if model.makes != "model":
        validate(model, section, where, f"{entry.name}.")
        return
    own = {key: value for key, value in section.items() if key in model.model_fields}
    options = {key: value for key, value in section.items() if key not in model.model_fields}
    valid = list(model.model_fields)
    checks: list[Callable[[], object]] = [lambda: validate(model, own, where, f"{entry.name}.")]
    checks += [partial(check_option, entry.kind, entry.name, k, v, valid, where) for k, v in options.items()]
    checks += [partial(check_smoothing, options, f"{entry.name} in {where}")] if entry.kind == "dpo" else []
    collect(checks)


def _check_rows(recipe: Recipe, names: list[str], where: str) -> None:
    valid = [*names, "dev", "test"]
    for key in recipe.data.rows:
        if key not in valid:
            raise UserError("data.rows for an unknown stage", value=key, where=where, do=nearest(key, valid))
