"""Words on the terminal and exit codes; the only place that catches every exception. See docs/cli.md."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from pipeline import show
from pipeline.errors import NeedsMissing, PipelineError, UserError, UserErrors
from pipeline.evaluation.schema import read_comparison
from pipeline.load import recipe_file, recipe_names
from pipeline.recipe import Recipe
from pipeline.run import HOME, RunDir, known_runs
from pipeline.settings import nearest
from pipeline.submit import slurm
from pipeline.submit.local import log_tail
from pipeline.submit.plan import Choice, make_plan
from pipeline.submit.render import render_all
from pipeline.submit.start import Via, active, default_via, resolve, resolve_for_job, start, start_over
from pipeline.submit.status import status as states_of

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)

RecipeName = Annotated[str, typer.Argument(help="a recipe: its name in configs/, or the path of a YAML file")]
Overrides = Annotated[list[str] | None, typer.Argument(help="section.key=value ...")]
RunName = Annotated[str | None, typer.Option("--run-name", help="name of the run; the recipe's by default")]
RunArgument = Annotated[str, typer.Argument(help="name of a run")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]


@app.command()
def run(
    recipe: RecipeName,
    overrides: Overrides = None,
    run_name: RunName = None,
    via: Annotated[str | None, typer.Option(help="local, slurm or submitit; Slurm where it answers")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show the plan, do nothing")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="delete this run's own folders first")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="make finished stages anew that changed")] = False,
    only: Annotated[str | None, typer.Option(help="this stage alone")] = None,
    first: Annotated[str | None, typer.Option("--from", help="this stage and those after it")] = None,
    last: Annotated[str | None, typer.Option("--until", help="no stage after this one")] = None,
    model: Annotated[str | None, typer.Option(help="model folder or hub id that training starts from")] = None,
    as_json: AsJson = False,
) -> None:
    """Run a recipe: preprocess, train, evaluate; what is done is skipped."""
    settings, folder, cluster = resolve(recipe, overrides or [], run_name, model)
    choice = Choice(only, first, last, replace, fresh)
    if dry_run:
        show.plan(make_plan(settings, folder, cluster, choice), as_json)
        return
    way = _via(via)
    if fresh or not folder.logs.exists():
        make_plan(settings, folder, cluster, choice)  # what is wrong is told before folders are deleted or made
    with folder.locked():
        if fresh:
            start_over(folder, settings, show.console)
        busy = active(folder, settings)
        if busy:
            show.console.print(f"run {folder.name} is at work already:")
            show.states(busy)
            return
        plan = make_plan(settings, folder, cluster, choice)
        show.decisions(plan)
        show.place(plan, way, chosen=via is not None)
        jobs = start(plan, way, show.console) if plan.to_run else {}
    if jobs:
        show.submitted(plan, jobs)
    else:
        show.results(folder)


@app.command()
def plan(
    recipe: RecipeName,
    overrides: Overrides = None,
    run_name: RunName = None,
    replace: bool = False,
    as_json: AsJson = False,
) -> None:
    """Show what `run` would do: stages, resources, batches, the exact scripts and commands. Writes nothing."""
    settings, folder, cluster = resolve(recipe, overrides or [], run_name)
    show.plan(make_plan(settings, folder, cluster, Choice(replace=replace)), as_json)


@app.command()
def status(name: RunArgument, as_json: AsJson = False) -> None:
    """Show the state of every stage of a run; works without sacct."""
    folder, settings = _open(name)
    states = states_of(folder, settings)
    if as_json:
        print(json.dumps({"run": folder.name, "stages": [each.as_dict() for each in states]}, indent=1))
    else:
        show.states(states)


@app.command()
def logs(
    name: RunArgument,
    stage: Annotated[str | None, typer.Argument(help="a stage; the newest one by default")] = None,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="go on as the log grows")] = False,
) -> None:
    """Show the log of a stage's newest attempt."""
    folder, settings = _open(name)
    names = [entry.name for entry in settings.stages]
    if stage and stage not in names:
        raise UserError("unknown stage", value=stage, where=f"run {name}", do=nearest(stage, names))
    begun = [each for each in names if folder.latest_log(each).exists()]
    if stage not in begun and (stage or not begun):
        raise NeedsMissing("no log yet", value=stage or name, where=str(folder.logs), do="see `status`")
    chosen = stage or begun[-1]
    if follow:
        sys.exit(subprocess.run(["tail", "-n", "50", "-F", str(folder.latest_log(chosen))], check=False).returncode)
    print("\n".join(log_tail(folder, chosen, 10_000)))


@app.command()
def cancel(name: RunArgument) -> None:
    """Cancel all jobs of a run, those that wait for a failed stage too."""
    folder, settings = _open(name)
    recorded = {entry.name: str(folder.submission(entry.name).get("job") or "") for entry in settings.stages}
    queued = slurm.queue([job for job in recorded.values() if job])
    live = {stage: job for stage, job in recorded.items() if job in queued and not slurm.has_ended(queued[job])}
    slurm.cancel(list(live.values()))
    for stage, job in live.items():
        folder.write_state(stage, state="cancelled", reason="cancelled by its user", job=job)
    told = ", ".join(f"{stage} ({job})" for stage, job in live.items())
    show.console.print(f"cancelled: {told}" if live else "nothing of this run is queued or running", highlight=False)


@app.command()
def render(
    check: Annotated[bool, typer.Option(help="change nothing, fail when a script is not current")] = False,
) -> None:
    """Write the sbatch scripts of the named recipes into slurm/."""
    changed = render_all(HOME, write=not check)
    for path in changed:
        show.console.print(f"{'not current' if check else 'written'}: {path.relative_to(HOME)}", highlight=False)
    if check and changed:
        raise UserError(
            "scripts are not current", value=len(changed), where="slurm/", do="run: python -m pipeline render"
        )


@app.command()
def evaluate(
    model_dir: Annotated[Path, typer.Argument(help="model or adapter folder")],
    name: Annotated[str, typer.Argument(help="the name under which it stands in the results")],
    run_name: RunName = None,
) -> None:
    """Evaluate a model folder on the test rows of the run that made it (or of --run-name)."""
    if not model_dir.is_dir():
        raise UserError("no such model folder", value=str(model_dir), where=str(Path.cwd()), do="check the path")
    owner = run_name or _run_of_model(model_dir.resolve())
    folder, _ = _open(owner)
    command = [sys.executable, "-m", "pipeline.stages.evaluate", str(folder.logs), "evaluate"]
    done = subprocess.run([*command, "--model", str(model_dir.resolve()), "--name", name], cwd=HOME, check=False)
    if done.returncode:
        sys.exit(done.returncode if done.returncode in (2, 3) else 1)
    show.results(folder)


@app.command()
def report(name: RunArgument) -> None:
    """Write report.html anew from what the run has; also after a failed run."""
    from pipeline.evaluation.report import write_report

    folder, _ = _open(name)
    show.console.print(f"report: {write_report(folder)}", highlight=False, soft_wrap=True)
    if read_comparison(folder.comparison):
        show.results(folder)


@app.command()
def compare(
    names: Annotated[list[str], typer.Argument(help="names of runs")],
    out: Annotated[Path | None, typer.Option(help="the page; evaluation_results/compare.html by default")] = None,
) -> None:
    """Put several runs on one page: results, differences, settings."""
    from pipeline.cli_results import compare_runs

    compare_runs([_open(name)[0] for name in names], out)


@app.command()
def gate(
    name: RunArgument,
    minimum: Annotated[list[str] | None, typer.Option("--min", help="such as f1=0.6; may be repeated")] = None,
    base: Annotated[str | None, typer.Option("--no-regression", help="a model of the run, or another run")] = None,
    model: Annotated[str | None, typer.Option(help="the model; that of the last training stage by default")] = None,
) -> None:
    """End with code 1 unless a run's result is good enough, and no worse than another."""
    from pipeline.cli_results import hold_gate

    hold_gate(_open(name)[0], minimum or [], base, model, lambda other: _open(other)[0])


@app.command(add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def corr2cause(context: typer.Context) -> None:
    """The causal engine: generate, solve, explain, check or audit data (`corr2cause --help`)."""
    from pipeline.cli_corr2cause import app as verbs  # numpy and igraph are not for those who only submit

    code = verbs(context.args, prog_name="python -m pipeline corr2cause", standalone_mode=False)
    if code:
        raise typer.Exit(code)


@app.command(hidden=True, name="resolve")
def resolve_recipe(recipe: RecipeName) -> None:
    """For slurm/stage.sh: make the run of a recipe ready, print its folder of logs."""
    print(resolve_for_job(recipe).logs)


def _via(word: str | None) -> Via:
    if word is None:
        return default_via()
    if word == "local" or word == "submitit":
        return "local" if word == "local" else "submitit"
    if word != "slurm":
        raise UserError("unknown way to run", value=word, where="--via", do="use local, slurm or submitit")
    if not slurm.is_there():
        raise UserError("no Slurm answers here", value="scontrol ping", where="--via slurm", do="use --via local")
    return "slurm"


def _open(name: str) -> tuple[RunDir, Recipe]:
    """A run that was launched, by name. Raises UserError with the nearest name when there is none."""
    from pipeline.cluster import load_cluster, output_root

    root = output_root(load_cluster())
    folder = RunDir(root, name)
    if not folder.resolved.is_file():
        runs = known_runs(root)
        hint = nearest(name, runs) if runs else f"start one: run {name}"
        raise UserError("no such run", value=name, where=str(folder.logs), do=hint)
    return folder, folder.read_resolved()[0]


def _run_of_model(folder: Path) -> str:
    """The run whose stage made a model folder (or a checkpoint in it), from the folder's name."""
    from pipeline.cluster import load_cluster, output_root

    root = output_root(load_cluster())
    parts = {folder.name, folder.parent.name}
    for name in known_runs(root):
        candidate = RunDir(root, name)
        stages = [entry.name for entry in candidate.read_resolved()[0].stages]
        if parts & {candidate.model(stage).name for stage in ["base", *stages]}:
            return name
    raise UserError("no run here made this model", value=str(folder), where=str(root), do="name one with --run-name")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; the exit code. A recipe's name in place of a verb means `run`."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        verbs = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
        if words and not words[0].startswith("-") and words[0] not in verbs:
            words = _as_run(words, verbs)
        code: int | None = app(words, standalone_mode=False)
        if code == 130:  # the parser swallows Ctrl-C and hands back this code
            raise KeyboardInterrupt
        return code or 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (UserErrors, PipelineError) as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return error.exit_code
    except typer.Exit as leave:
        return leave.exit_code
    except Exception as error:  # noqa: BLE001 - the one place: usage errors of the parser, else a bug with its traceback
        return show.unexpected(error)


def _as_run(words: list[str], verbs: set[str]) -> list[str]:
    known = [*verbs, *recipe_names(HOME)]
    if words[0] in known or words[0].endswith((".yaml", ".yml")):
        recipe_file(HOME, words[0])
        return ["run", *words]
    raise UserError(
        "neither a recipe nor a verb", value=words[0], where="the command line", do=nearest(words[0], known)
    )
