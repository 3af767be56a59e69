"""The verb `fit`: memory, time and disk of a recipe's stages on a GPU, before anything is queued."""

from __future__ import annotations

import subprocess
from typing import Annotated

import typer

from pipeline import show
from pipeline.cluster import ClusterFile, output_root
from pipeline.errors import PipelineError
from pipeline.fit.calibration import observe, read_observations
from pipeline.fit.cards import Card, card_named, known_card
from pipeline.fit.recipe_fit import StageFit, fit_stage, gpu_stages, refuse, unplanned
from pipeline.fit.settle import for_card
from pipeline.fit.tracer import Tracer
from pipeline.recipe import Recipe
from pipeline.run import RunDir
from pipeline.submit.start import resolve
from pipeline.verbs.arguments import AsJson, Overrides, RecipeName, RunName, print_json, words_to_stderr
from pipeline.verbs.fit_table import as_tree, error_line, fit_lines, fit_table

CACHE = "fit"
"""Name of the cache folder of traces."""


def fit(
    recipe: RecipeName,
    overrides: Overrides = None,
    gpu: Annotated[str | None, typer.Option(help="a card (l4, a100, rtx2080ti ...) or a size (24G)")] = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="GPUs for training; the recipe's by default")] = None,
    run_name: RunName = None,
    as_json: AsJson = False,
) -> None:
    """Predict GPU memory by term, host memory, disk and time; choose the micro-batch; say what would fit."""
    words_to_stderr(as_json)
    settings, folder, cluster = resolve(recipe, overrides or [], run_name)
    card = card_named(gpu) if gpu else site_card(cluster)
    settings = for_card(settings, card)
    stages = gpu_stages(settings, all_of_them=gpu is not None) or gpu_stages(settings, all_of_them=True)
    with Tracer(folder.cache(CACHE), _tell) as tracer:
        seen = observe(output_root(cluster), tracer)
        fits = [fit_stage(settings, folder, name, card, tracer, seen, gpus) for name in stages]
    if as_json:
        print_json(as_tree(settings, fits, seen))
    else:
        show.console.print(fit_table(fits))
        for line in [*fit_lines(fits), error_line(seen)]:
            show.console.print(line, markup=False, soft_wrap=True)
    refuse(fits, f"recipe {settings.name}")


def site_card(cluster: ClusterFile) -> Card | None:
    """The card that the cluster file names, else the one in this machine, if it is a known one."""
    return known_card(cluster.gres.type) or (None if cluster.gres.type else known_card(_local_gpu()))


def _local_gpu() -> str | None:
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return None
    return done.stdout.splitlines()[0] if done.returncode == 0 and done.stdout.strip() else None


def _tell(words: str) -> None:
    show.console.print(words, style="dim", soft_wrap=True)


def planned(recipe: Recipe, run: RunDir, card: Card | None) -> tuple[list[StageFit], list[str]]:
    """(fits of the stages that ask for a GPU and are not done, what could not be predicted and why)."""
    found, unknown = [], [f"{name}: memory of stages of this kind is not predicted" for name in unplanned(recipe)]
    folder = run.cache(CACHE)
    with Tracer(folder, _tell) as tracer:
        seen = read_observations(folder)
        for name in [name for name in gpu_stages(recipe) if run.done(name) is None]:
            try:
                found.append(fit_stage(recipe, run, name, card, tracer, seen))
            except PipelineError as error:
                unknown.append(f"{name}: memory not predicted: {error}")
    return found, unknown
