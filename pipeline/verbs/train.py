"""The verb behind scripts/train.py: configurations in the keys of old become recipes, and the recipe is run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cluster import load_cluster, output_root
from pipeline.load import build_recipe, recipe_file
from pipeline.records import write_atomic
from pipeline.run import HOME, RunDir
from pipeline.settings import Tree, dump_yaml, merge, override_tree, read_yaml
from pipeline.translate import Translated, changes, is_framework_config, whole_recipe
from pipeline.verbs.arguments import RunName
from pipeline.verbs.launch import run


def train(
    config: Annotated[str, typer.Option("--config", help="a recipe, or a YAML of model, data, trainer and reward")],
    override: Annotated[list[str] | None, typer.Option("--override", help="section.key=value; may be repeated")] = None,
    run_name: RunName = None,
    via: Annotated[str, typer.Option(help="local, slurm or submitit")] = "local",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show the plan, do nothing")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="delete this run's own folders first")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="make finished stages anew that changed")] = False,
) -> None:
    """Run a recipe, or a configuration of scripts/train.py as the recipe that it describes; says the new spellings."""
    path = recipe_file(HOME, config)
    tree = read_yaml(path)
    given: Tree = {}
    for each in override or []:
        given = merge(given, override_tree(each))
    made = translated(tree, given, path.name)
    for line in made.told:
        print(f"{path.name}: {line}", file=sys.stderr)
    name = run_name or made.run_name
    build_recipe(path.stem, made.tree, path.name)  # every error before a file is written
    written = RunDir(output_root(load_cluster()), path.stem).cache("recipes").resolve() / f"{path.stem}.yaml"
    written.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(written, dump_yaml(made.tree))
    print(f"{path.name}: the recipe is {written}", file=sys.stderr)
    run(str(Path(written)), None, name, via=via, dry_run=dry_run, fresh=fresh, replace=replace)


def translated(tree: Tree, given: Tree, where: str) -> Translated:
    """The recipe of a file with the overrides `given`, which may be in either spelling. Raises UserErrors."""
    if is_framework_config(tree):
        return whole_recipe(merge(tree, given), where)
    found = changes(given, tree, f"--override for {where}")
    found.tree = merge(tree, found.tree)
    return found
