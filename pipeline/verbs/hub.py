"""Verbs that need a network, for the login node: prefetch brings in, sync sends out."""

from __future__ import annotations

from pipeline import show
from pipeline.cluster import load_cluster
from pipeline.submit.prefetch import prefetch as prefetch_all
from pipeline.submit.start import resolve
from pipeline.submit.status import status as status_of
from pipeline.submit.sync import offline_folders, send_newest
from pipeline.verbs.arguments import (
    AsJson,
    Overrides,
    RecipeName,
    RunArgument,
    open_run,
    print_json,
    words_to_stderr,
)


def prefetch(recipe: RecipeName, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Bring the models and data sets of a recipe into the cache, and pin them to a commit: jobs have no network."""
    words_to_stderr(as_json)
    settings, folder, cluster = resolve(recipe, overrides or [], None, pin=False)
    brought = prefetch_all(settings, folder, cluster)
    for each in brought:
        size = f"{each.size / 1e6:.1f} MB in {each.files} files"
        words = f"{each.kind} {each.name}: {each.revision} is commit {each.commit}, {size}, in {each.folder}"
        show.console.print(words, markup=False, soft_wrap=True)
    if not brought:
        show.console.print(f"recipe {settings.name} takes nothing from the hub", markup=False)
    if as_json:
        print_json({"recipe": settings.name, "items": [each.as_dict() for each in brought]})


def sync(name: RunArgument, as_json: AsJson = False) -> None:
    """Send what a run's stages tracked offline to W&B: one run a stage, however often it was requeued."""
    words_to_stderr(as_json)
    folder, settings = open_run(name)
    cluster = load_cluster()
    running = {each.stage for each in status_of(folder, settings) if each.state == "running"}
    sent: list[str] = []
    for stage in settings.training_stages():
        folders = offline_folders(folder, stage)
        if stage in running:
            show.console.print(f"{stage} is at work: sync again when it is done", markup=False)
        elif folders and (path := send_newest(folders, cluster)):
            sent.append(str(path))
            show.console.print(f"sent {stage}: {path}", markup=False, soft_wrap=True)
    if not sent and not running:
        show.console.print("nothing to send: no stage of this run tracked anything that was not sent", markup=False)
    if as_json:
        print_json({"run": folder.name, "sent": sent})
