"""What stages take from the hub: pinned to commits by `prefetch`, looked for in the cache, never fetched by a job."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from pipeline.errors import UserError
from pipeline.question_recipe import Source, sources
from pipeline.recipe import Recipe
from pipeline.records import read_json, write_json
from pipeline.run import RunDir
from pipeline.settings import raise_all
from pipeline.tasks.source import is_file_source, is_folder_source

Kind = Literal["model", "dataset"]
DEFAULT_REVISION = "main"
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
"""What keeps the libraries of a stage from asking the hub."""


@dataclass(frozen=True)
class Item:
    """A model or data set of the hub that a recipe names under `key`; `revision` is a branch, a tag or a commit."""

    kind: Kind
    name: str
    revision: str
    key: str

    def folder(self, environment: Mapping[str, str]) -> Path:
        """Where the hub's cache keeps this revision, which must be a commit."""
        return hub_cache(environment) / f"{self.kind}s--{self.name.replace('/', '--')}" / "snapshots" / self.revision


def hub_items(recipe: Recipe) -> list[Item]:
    """What a recipe takes from the hub; model folders, files and generated rows are not of it."""
    items = []
    base = recipe.model.base
    if base is not None and not is_folder_source(base):
        items.append(Item("model", base, recipe.model.revision or DEFAULT_REVISION, "model.base"))
    data = recipe.data
    used = [Source(data.source, data.revision, "data.source")] if recipe.task == "corr2cause" else sources(recipe)
    for source in used:
        if source.name != "generated" and not is_file_source(source.name) and not is_folder_source(source.name):
            items.append(data_item(source.name, source.revision, source.key))
    return items


def data_item(source: str, revision: str | None, key: str) -> Item:
    """The hub data set that a source names, whichever of its configurations."""
    return Item("dataset", source.partition(":")[0], revision or DEFAULT_REVISION, key)


def hub_cache(environment: Mapping[str, str]) -> Path:
    """The folder of the hub's cache under these variables, by the rules of huggingface_hub."""
    cache = environment.get("XDG_CACHE_HOME") or "~/.cache"
    home = environment.get("HF_HOME") or f"{cache}/huggingface"
    folder = environment.get("HF_HUB_CACHE") or environment.get("HUGGINGFACE_HUB_CACHE") or f"{home}/hub"
    return Path(os.path.expandvars(folder)).expanduser()


def _record(run: RunDir, item: Item) -> Path:
    name = f"{item.kind}s--{item.name.replace('/', '--')}"
    return run.cache("prefetched") / name / f"{quote(item.revision, safe='')}.json"


def read_prefetched(run: RunDir, item: Item) -> dict[str, Any] | None:
    """What `prefetch` recorded of an item: commit, files (name: bytes), time; None when it never brought it."""
    record = read_json(_record(run, item))
    return record if isinstance(record, dict) and {"commit", "files"} <= record.keys() else None


def write_prefetched(run: RunDir, item: Item, commit: str, files: Mapping[str, int], when: str) -> None:
    """Record what `prefetch` brought, to be found by the revision that was asked for and by the commit."""
    facts = {"kind": item.kind, "name": item.name, "revision": item.revision, "commit": commit, "time": when}
    for revision in {item.revision, commit}:
        known = Item(item.kind, item.name, revision, item.key)
        write_json(_record(run, known), {**facts, "files": dict(files)})


def pinned(recipe: Recipe, run: RunDir) -> Recipe:
    """The recipe with the commits that `prefetch` recorded in place of branches; others stay as they are."""
    for item in hub_items(recipe):
        record = read_prefetched(run, item)
        if record is not None:
            recipe = _with_revision(recipe, item.key, record["commit"])
    return recipe


def _with_revision(recipe: Recipe, key: str, commit: str) -> Recipe:
    section, *rest = key.split(".", 2)
    pin = {"revision": commit}
    if rest[0] == "parts":
        parts = {**recipe.data.parts, rest[1]: recipe.data.parts[rest[1]].model_copy(update=pin)}
        return recipe.model_copy(update={"data": recipe.data.model_copy(update={"parts": parts})})
    return recipe.model_copy(update={section: getattr(recipe, section).model_copy(update=pin)})


def check_cached(recipe: Recipe, run: RunDir, environment: Mapping[str, str], *, data: bool) -> None:
    """That what the recipe takes from the hub is in the cache, whole: its model, and its data set where `data` is true.

    Raises UserErrors that name `prefetch`.
    """
    items = [item for item in hub_items(recipe) if data or item.kind == "model"]
    raise_all([error for item in items if (error := _missing(recipe, run, item, environment))])


def _missing(recipe: Recipe, run: RunDir, item: Item, environment: Mapping[str, str]) -> UserError | None:
    what = "model" if item.kind == "model" else "data set"
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", item.name):
        return UserError(
            f"neither a {what} folder here nor an id of the hub", value=item.name, where=item.key, do="check the path"
        )
    record = read_prefetched(run, item)
    folder = item.folder(environment)
    if record is None:
        told = f"the {what} was not brought into the cache"
    elif absent := next((name for name, size in record["files"].items() if _size(folder / name) != size), None):
        told = f"the {what} is not whole in the cache ({absent})"
    else:
        return None
    return UserError(
        told, value=f"{item.name} at {item.revision}", where=f"{item.key}; cache {hub_cache(environment)}",
        do=f"jobs have no network: run `prefetch {recipe.name}` first, where there is one"
    )  # fmt: skip


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights in the safetensors files of a model folder, by name; empty where there are none."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        shapes |= {name: tuple(each["shape"]) for name, each in header.items() if name != "__metadata__"}
    return shapes
