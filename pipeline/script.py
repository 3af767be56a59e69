"""Training scripts as they are started by hand: `[LAUNCHER] scripts/train_sft.py FILE --flat_key value a.key=value`.

Flat keys become keys of the recipe; a line on standard error shows the new spelling. Below torchrun, accelerate or
deepspeed the first process runs the stage, the others are its ranks.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.cli import main, tell
from pipeline.cluster import load_cluster, output_root
from pipeline.errors import PipelineError, UserError
from pipeline.flat_keys import GRPO_KEYS, Translated, is_flat, kind_of, translate
from pipeline.load import load_recipe, recipe_file
from pipeline.recipe import KINDS, Recipe
from pipeline.run import HOME, RunDir
from pipeline.run_paths import meeting_file
from pipeline.settings import Tree, dump_yaml, parse_yaml, read_yaml
from pipeline.training import joined
from pipeline.training.launchers import gpus_at_hand
from pipeline.training.ranks import rank, world_size

OF_RUN = {
    "--run-name": True,
    "--model": True,
    "--replace": False,
    "--fresh": False,
    "--dry-run": False,
    "--json": False,
}
"""Options of `run` that scripts take as well, and whether a value follows."""
LAUNCHERS = ("local_rank",)
"""Flags that launchers add themselves."""


@dataclass
class Words:
    """What stands on the command line of a script."""

    recipe: str | None = None
    overrides: list[str] = field(default_factory=list)
    flat: Tree = field(default_factory=dict)
    options: list[str] = field(default_factory=list)


def split(words: Sequence[str]) -> Words:
    """Sort the words of a command line. Raises UserError for one that is none of recipe, override, flag, option."""
    found, todo = Words(), list(words)
    while todo:
        word = todo.pop(0)
        name, equals, text = word.partition("=")
        if name in OF_RUN:
            found.options.append(name)
            if OF_RUN[name]:
                found.options.append(text if equals else _value(name, todo))
        elif word.startswith("--"):
            key = name.removeprefix("--").replace("-", "_")
            flag = not equals and (not todo or todo[0].startswith("--"))
            given: Any = True if flag else parse_yaml(text if equals else todo.pop(0), f"--{key}")
            if key not in LAUNCHERS:
                found.flat[key] = given
        elif equals and found.recipe is not None:
            found.overrides.append(word)
        elif found.recipe is None:
            found.recipe = word
        else:
            raise UserError("a second recipe", value=word, where="the command line", do="give one, then --key value")
    return found


def _value(name: str, todo: list[str]) -> str:
    if not todo:
        raise UserError("an option without its value", value=name, where="the command line", do=f"{name} VALUE")
    return todo.pop(0)


def train(kind: str, words: Sequence[str]) -> int:
    """Run the stage of a kind as its script was asked to; the exit code. Ranks but the first never return from it."""
    if not words:
        return main(["run", "--help"])
    if not joined.is_started(os.environ):
        return _run(kind, words)
    root = output_root(load_cluster())
    os.environ[joined.MEETING] = str(meeting_file(root, joined.meeting_key(os.environ, os.getppid())))
    path = Path(os.environ[joined.MEETING])
    if rank() > 0:
        joined.follow(path)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the stage saves, as it does after Ctrl-C
    path.parent.mkdir(parents=True, exist_ok=True)
    joined.clear_away(path)
    code = _run(kind, words)
    if path.exists():
        path.unlink()
    elif code == 0:
        joined.dismiss()
    return code


def _run(kind: str, words: Sequence[str]) -> int:
    """In the first or only process: translate, then `run`."""
    with tempfile.TemporaryDirectory(prefix="flat-") as folder:
        try:
            call, output = command(kind, split(words), Path(folder))
        except PipelineError as error:
            return tell(error)
        code = main(call)
        if code == 0 and output is not None and "--dry-run" not in call:
            output.point()
    return code


@dataclass(frozen=True)
class Output:
    """The folder in which a script was asked to leave its model, and the one in which the run leaves it."""

    asked: Path
    model: Path

    def check(self) -> None:
        """Raise UserError when something else stands there."""
        if self.asked.is_symlink() or self.asked.resolve() == self.model.resolve() or not self.asked.exists():
            return
        if not self.asked.is_dir() or any(self.asked.iterdir()):
            raise UserError("output_dir is there and is no link to a model of a run", value=str(self.asked),
                            where="output_dir", do="move it away, or give another name")  # fmt: skip

    def point(self) -> None:
        """Make output_dir a link to the model."""
        if self.asked.is_dir() and not self.asked.is_symlink() and self.asked.resolve() != self.model.resolve():
            self.asked.rmdir()
        if self.asked.is_symlink() or not self.asked.exists():
            self.asked.parent.mkdir(parents=True, exist_ok=True)
            self.asked.unlink(missing_ok=True)
            self.asked.symlink_to(os.path.relpath(self.model, self.asked.parent))


def command(kind: str, words: Words, folder: Path) -> tuple[list[str], Output | None]:
    """The words of `run` that do what a script was asked to do, and where its model is wanted.

    A recipe that stands on the command line alone is written into `folder`. Raises UserErrors.
    """
    path = _recipe_path(kind, words, folder)
    file = read_yaml(path)
    flat = {**(file if is_flat(file) else {}), **words.flat}
    recipe = load_recipe(path, words.overrides)
    stage = _stage(recipe, kind)
    gpus = gpus_at_hand()
    started = joined.is_started(os.environ)
    processes = world_size() if started else max(1, gpus)
    section = {} if is_flat(file) else recipe.sections[stage]
    found = translate(flat, kind, stage, section, processes, path.name)
    overrides = [*words.overrides, *found.overrides()]
    if is_flat(file) and not started:
        overrides += [f"resources.{stage}.gpus={gpus}", *_own_launcher(found, stage, gpus)]
    if started:
        overrides += joined.overrides(load_recipe(path, overrides), stage, gpus)
    call = ["run", str(path), *overrides, *words.options, *_reach(recipe, stage), "--via", "local"]
    if flat:
        _show(call, found)
    name = words.options[words.options.index("--run-name") + 1] if "--run-name" in words.options else recipe.name
    run = RunDir(output_root(load_cluster()), name)
    check_resume(flat.get("resume_from_checkpoint"), run.checkpoints(stage))
    if found.output is None:
        return call, None
    output = Output(Path(os.path.abspath(Path(found.output).expanduser())), run.model(stage))  # noqa: PTH100 - links stay
    output.check()
    return call, output


def check_resume(asked: Any, own: Path) -> None:
    """Raise UserError for a checkpoint that is none of this stage's own, from which it resumes by itself."""
    if isinstance(asked, str) and Path(asked).expanduser().resolve().parent != own.resolve():
        raise UserError("a checkpoint of another recipe or run", value=asked, where="resume_from_checkpoint",
                        do=f"leave it out: the stage goes on from {own}; --model starts from its weights")  # fmt: skip


def _own_launcher(found: Translated, stage: str, gpus: int) -> list[str]:
    several = gpus > 1 and f"resources.{stage}.launcher" not in found.changes
    return [f"resources.{stage}.launcher=torchrun"] if several else []


def _recipe_path(kind: str, words: Words, folder: Path) -> Path:
    """The file of the recipe; without one, that of the flat keys on the command line, named after their output_dir."""
    if words.recipe is not None:
        path = recipe_file(HOME, words.recipe)
        if is_flat(read_yaml(path)) and kind_of(read_yaml(path)) != kind and kind == "sft":
            raise UserError("a file for GRPO", value=sorted(read_yaml(path).keys() & GRPO_KEYS), where=path.name,
                            do="start it with scripts/train_grpo.py")  # fmt: skip
        return path
    if "model_name_or_path" not in words.flat:
        raise UserError("neither a recipe nor a model", value=sorted(words.flat), where="the command line",
                        do="give a recipe file, or --model_name_or_path MODEL")  # fmt: skip
    name = Path(str(words.flat.get("output_dir", kind))).name
    path = folder / f"{name}.yaml"
    path.write_text(dump_yaml(words.flat), encoding="utf-8")
    return path


def _stage(recipe: Recipe, kind: str) -> str:
    for entry in recipe.stages:
        if entry.kind == kind:
            return entry.name
    raise UserError(f"no {kind} stage", value=[entry.name for entry in recipe.stages], where=f"recipe {recipe.name}",
                    do="name another recipe")  # fmt: skip


def _reach(recipe: Recipe, stage: str) -> list[str]:
    """The stage with the data that it needs; without the training of others before it."""
    names = [entry.name for entry in recipe.stages]
    before = recipe.stages[: names.index(stage)]
    alone = any(KINDS[entry.kind].makes != "dataset" for entry in before)
    return ["--only" if alone else "--until", stage]


def _show(call: list[str], found: Translated) -> None:
    told = " ".join(shlex.quote(word) for word in ("bash", "run_pipeline.sh", *call[1:-2]))
    dropped = "".join(f"; {key} is not needed: {why}" for key, why in found.dropped.items())
    print(f"now spelled: {told}{dropped}", file=sys.stderr)
