"""Verbs for a site: init writes its cluster file, doctor checks that and the plan of a recipe."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline import show
from pipeline.cluster import CLUSTER_FILE, load_cluster
from pipeline.errors import UserError
from pipeline.records import write_atomic
from pipeline.submit import slurm
from pipeline.submit.discover import Site, discover
from pipeline.submit.doctor import check_file, check_stages
from pipeline.submit.plan import Choice, make_plan
from pipeline.submit.probe import probe as run_probe
from pipeline.submit.site_file import cluster_file_text
from pipeline.submit.start import resolve
from pipeline.verbs.arguments import AsJson, print_json, words_to_stderr


def init(
    force: Annotated[bool, typer.Option("--force", help="replace configs/cluster.yaml")] = False,
    as_json: AsJson = False,
) -> None:
    """Ask Slurm what this site offers and write configs/cluster.yaml."""
    words_to_stderr(as_json)
    site = _site()
    if CLUSTER_FILE.exists() and not force:
        raise UserError(
            "there is a cluster file already", value=CLUSTER_FILE.name, where=str(CLUSTER_FILE.parent),
            do="--force replaces it; `doctor` checks it",
        )  # fmt: skip
    text = cluster_file_text(site)
    write_atomic(CLUSTER_FILE, text)
    show.console.print(text, markup=False, soft_wrap=True, end="")
    show.console.print(f"written: {CLUSTER_FILE}; next: python -m pipeline doctor", markup=False, soft_wrap=True)
    if as_json:
        print_json({"file": str(CLUSTER_FILE), "settings": load_cluster().model_dump()})


def doctor(
    recipe: Annotated[str, typer.Argument(help="the recipe whose plan is checked")] = "smoke",
    probe: Annotated[bool, typer.Option("--probe/--no-probe", help="run a job that looks at a compute node")] = True,
    as_json: AsJson = False,
) -> None:
    """Check the cluster file, every stage of a recipe and a compute node; name the fix for what is wrong."""
    words_to_stderr(as_json)
    site = _site()
    settings, folder, cluster = resolve(recipe, [], None)
    plan = make_plan(settings, folder, cluster, Choice(fresh=True))
    checks = [*check_file(site, cluster), *check_stages(site, plan)]
    for check in checks:
        show.check(check)
    if probe and all(check.good for check in checks):
        found = run_probe(plan)
        for check in found:
            show.check(check)
        checks += found
    if as_json:
        print_json({"recipe": recipe, "checks": [check.as_dict() for check in checks]})
    if any(check.good is False for check in checks):
        raise typer.Exit(2)


def _site() -> Site:
    if not slurm.is_there():
        raise UserError("no Slurm answers here", value="scontrol ping", where="this machine", do="use --via local")
    return discover()
