"""Verbs that need a network, for the login node: prefetch brings in, sync sends out."""

from __future__ import annotations

from pipeline import show
from pipeline.cluster import load_cluster
from pipeline.submit.prefetch import prefetch as prefetch_all
from pipeline.submit.start import resolve
from pipeline.submit.sync import is_sent, newest_folder, send
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
    """Send what a run's finished stages tracked offline to W&B: one run a stage, however often it was requeued."""
    words_to_stderr(as_json)
    folder, settings = open_run(name)
    cluster = load_cluster()
    sent: list[str] = []
    for stage in settings.training_stages():
        path = newest_folder(folder, stage)
        if path is None or is_sent(path):
            continue
        if not folder.done(stage):  # W&B puts what is sent later after what it has: a step would stand there twice
            show.console.print(f"{stage} is not done: sync again when it is", markup=False)
            continue
        send(path, cluster)
        sent.append(str(path))
        show.console.print(f"sent {stage}: {path}", markup=False, soft_wrap=True)
    if not sent:
        show.console.print("nothing to send", markup=False)
    if as_json:
        print_json({"run": folder.name, "sent": sent})
