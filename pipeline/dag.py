"""Stages, edges, order, fingerprints: what a stage is. Knows no stage by name."""

from __future__ import annotations

import ast
import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.recipe import KINDS, Recipe
from pipeline.records import file_hash
from pipeline.run import HOME, RunDir
from pipeline.settings import Tree

NOT_IN_RESULTS = (
    "logging_", "log_", "dataloader_", "ddp_timeout", "disable_tqdm", "micro_batch_size", "batch_size", "checkpoint",
    "gradient_checkpointing",
)  # fmt: skip
"""Beginnings of section keys that do not change what a stage makes."""

TOKENIZER_FILES = ("tokenizer", "special_tokens", "added_tokens", "vocab", "merges", "chat_template")
"""Beginnings of the names of the files of a model folder that decide on tokens and prompts."""


@dataclass(frozen=True)
class Stage:
    """A node of the DAG. `settings` are those that affect its result, `outputs` what its done marker lists."""

    name: str
    kind: str
    needs: tuple[str, ...]
    settings: Tree
    outputs: tuple[Path, ...]
    fingerprint: str

    @property
    def module(self) -> str:
        """The Python module whose `main` does the work."""
        return f"pipeline.stages.{self.kind}"


def build(recipe: Recipe, run: RunDir, home: Path = HOME) -> dict[str, Stage]:
    """The stages of a recipe in order, each with its fingerprint for the code in `home`."""
    stages: dict[str, Stage] = {}
    previous: tuple[str, ...] = ()
    for entry in recipe.stages:
        needs = tuple(entry.needs) if entry.needs is not None else previous
        settings = result_settings(recipe, entry.name)
        needed = {need: stages[need].fingerprint for need in needs}
        fingerprint = fingerprint_of(settings, needed, sources_hash(f"pipeline.stages.{entry.kind}", home))
        outputs = stage_outputs(recipe, run, entry.name, fingerprint)
        stages[entry.name] = Stage(entry.name, entry.kind, needs, settings, outputs, fingerprint)
        previous = (entry.name,)
    return stages


def result_settings(recipe: Recipe, name: str) -> Tree:
    """The settings that affect the result of a stage: never where, how long or how it is logged."""
    section = {k: v for k, v in recipe.sections[name].items() if not k.startswith(NOT_IN_RESULTS)}
    settings: Tree = {"task": recipe.task, "seed": recipe.seed, "model": recipe.model.model_dump(), "section": section}
    if isinstance(section.get("pairs"), str):
        settings["pairs_stamp"] = source_stamp(section["pairs"])
    if KINDS[recipe.stage(name).kind].makes == "dataset":
        settings["model"] = recipe.model.model_dump(include={"base", "revision", "scratch", "chat_template"})
        settings["template_stamp"] = source_stamp(recipe.model.chat_template)
        settings["tokenizer_stamp"] = tokenizer_stamp(recipe.model.base)
        settings["data"] = recipe.data.model_dump()
        settings["source_stamp"] = source_stamp(recipe.data.source)
        settings["part_stamps"] = {name: source_stamp(part.source) for name, part in recipe.data.parts.items()}
        settings["teacher_stamp"] = source_stamp(recipe.data.teacher)
        settings["training_stages"] = recipe.training_stages()
        settings["stamps"] = {k: source_stamp(v) for k, v in section.items() if isinstance(v, str)}
    return settings


def source_stamp(source: str | None) -> str | None:
    """Hash of a data file's contents (of each file of a folder), so that a changed file is a changed stage; None for
    what is no file here."""
    if source is None:
        return None
    if Path(source).is_dir():
        files = (
            path
            for path in sorted(Path(source).iterdir())
            if path.stem in ("train", "dev", "val", "validation", "test")
        )
        return " ".join(f"{path.name} {file_hash(path)}" for path in files)
    return file_hash(Path(source)) if Path(source).is_file() else None


def tokenizer_stamp(base: str | None) -> dict[str, str]:
    """Hashes of the tokenizer and chat template files of a model folder, by name; empty for what is no folder here."""
    paths = sorted(Path(base).iterdir()) if base is not None and Path(base).is_dir() else []
    return {path.name: file_hash(path) for path in paths if path.name.startswith(TOKENIZER_FILES)}


def stage_outputs(recipe: Recipe, run: RunDir, name: str, fingerprint: str) -> tuple[Path, ...]:
    """What a stage writes."""
    makes = KINDS[recipe.stage(name).kind].makes
    if makes == "dataset":
        scratch = (run.model("base"),) if recipe.model.scratch else ()
        return (run.dataset(fingerprint), *scratch)
    if makes == "robustness":
        return (run.robustness,)
    return (run.model(name),) if makes == "model" else (run.comparison, run.report)


def fingerprint_of(settings: Tree, needs: Mapping[str, str], sources: str) -> str:
    """16 hex digits over everything that a stage's result depends on."""
    text = json.dumps([settings, dict(needs), sources], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def ancestors(stages: Mapping[str, Stage], name: str) -> list[str]:
    """All stages that a stage needs, directly or not, in the order of the recipe."""
    wanted, todo = set(), [name]
    while todo:
        for need in stages[todo.pop()].needs:
            if need not in wanted:
                wanted.add(need)
                todo.append(need)
    return [stage for stage in stages if stage in wanted]


def descendants(stages: Mapping[str, Stage], name: str) -> list[str]:
    """All stages that need a stage, directly or not, in the order of the recipe."""
    return [other for other in stages if name in ancestors(stages, other)]


_HOLDERS = (ast.stmt, ast.excepthandler, ast.match_case)
"""What statements can be in."""


@functools.cache
def imported_files(module: str, home: Path = HOME) -> frozenset[Path]:
    """Source files of the project that a module imports, directly or not, itself included; found without importing."""
    found: set[Path] = set()
    todo = [module]
    while todo:
        path = _source_of(todo.pop(), home)
        if path is None or path in found:
            continue
        found.add(path)
        todo += _imports(path)
    return frozenset(found)


@functools.cache
def _imports(path: Path) -> tuple[str, ...]:
    """What a source file imports anywhere in it, names that may be no modules among it. Every command needs this."""
    names: list[str] = []
    todo: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        # expressions hold no statements, and are most of a file
        todo += [each for each in ast.iter_child_nodes(node) if isinstance(each, _HOLDERS)]
    return tuple(names)


@functools.cache
def _source_of(module: str, home: Path) -> Path | None:
    if module.split(".")[0] != "pipeline":
        return None
    path = home.joinpath(*module.split("."))
    return next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()), None)


def sources_hash(module: str, home: Path = HOME) -> str:
    """Hash of the sources that a stage's module imports."""
    digest = hashlib.sha256()
    for path in sorted(imported_files(module, home)):
        digest.update(path.relative_to(home).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def dataset_of(recipe: Recipe, run: RunDir) -> Path:
    """The folder of processed rows that the stages of this run read."""
    stages = build(recipe, run)
    name = next(entry.name for entry in recipe.stages if KINDS[entry.kind].makes == "dataset")
    return run.dataset(stages[name].fingerprint)
