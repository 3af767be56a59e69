"""The command line as a whole: its verbs, exit codes; the only place that catches every exception. See docs/cli.md."""

from __future__ import annotations

import sys
from collections.abc import Callable

import typer

from pipeline import show
from pipeline.errors import PipelineError, UserError, UserErrors
from pipeline.load import recipe_file, recipe_names
from pipeline.run import HOME
from pipeline.settings import nearest
from pipeline.verbs import evaluate, fit, hub, launch, results, scoring, site, sweep_results, train, use, watch

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)
VERBS: tuple[Callable[..., None], ...] = (
    launch.run, launch.plan, fit.fit, hub.prefetch, watch.status, watch.why, watch.logs, launch.cancel, launch.retry,
    evaluate.evaluate, scoring.score, watch.report, results.compare, results.gate, use.merge, use.chat, use.infer,
    hub.sync, site.init, site.doctor, launch.render,
)  # fmt: skip
"""In the order in which `--help` lists them."""
for verb in VERBS:
    app.command()(verb)
app.command(hidden=True)(train.train)
app.command(hidden=True, name="resolve")(launch.resolve_recipe)
app.command(hidden=True, name="compare-sweep")(sweep_results.compare_sweep)


@app.command(add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def corr2cause(context: typer.Context) -> None:
    """The causal engine: generate, solve, explain, check or audit data (`corr2cause --help`)."""
    from pipeline.verbs.corr2cause import app as engine  # numpy and igraph are not for those who only submit

    code = engine(context.args, prog_name="python -m pipeline corr2cause", standalone_mode=False)
    if code:
        raise typer.Exit(code)


def verbs() -> set[str]:
    """The words that may stand first: commands and groups of them."""
    commands = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    return commands | {group.name for group in app.registered_groups if group.name}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; the exit code. A recipe's name in place of a verb means `run`."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    show.console.stderr = False  # a call before this one in the same process may have sent words there
    try:
        if words and not words[0].startswith("-") and words[0] not in verbs():
            words = _as_run(words)
        code: int | None = app(words, standalone_mode=False)
        if code == 130:  # the parser swallows Ctrl-C and hands back this code
            raise KeyboardInterrupt
        return code or 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (UserErrors, PipelineError) as error:
        return tell(error)
    except typer.Exit as leave:
        return leave.exit_code
    except Exception as error:  # noqa: BLE001 - the one place: usage errors of the parser, else a bug with its traceback
        return show.unexpected(error)


def tell(error: PipelineError) -> int:
    """Print an error, a line for each of several; its exit code."""
    for line in str(error).splitlines():
        print(f"error: {line}", file=sys.stderr)
    return error.exit_code


def _as_run(words: list[str]) -> list[str]:
    known = [*verbs(), *recipe_names(HOME)]
    if words[0] in known or words[0].endswith((".yaml", ".yml")):
        recipe_file(HOME, words[0])
        return ["run", *words]
    raise UserError(
        "neither a recipe nor a verb", value=words[0], where="the command line", do=nearest(words[0], known)
    )
