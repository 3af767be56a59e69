"""The verb `evaluate`: a model folder, a hub model or a server on the test rows of a run, or a server on any rows."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline import dag, show
from pipeline.cluster import load_cluster, output_root, variables
from pipeline.errors import UserError
from pipeline.run import HOME, RunDir, known_runs
from pipeline.settings import nearest
from pipeline.training.hub import OFFLINE
from pipeline.verbs.arguments import AsJson, RunName, open_run, print_json, words_to_stderr

ENDPOINT = "evaluate --endpoint URL --model NAME, and --run-name RUN or --data FILE"


def evaluate(
    model_dir: Annotated[str | None, typer.Argument(help="model or adapter folder, or a hub id")] = None,
    name: Annotated[str | None, typer.Argument(help="the name under which it stands in the results")] = None,
    run_name: RunName = None,
    endpoint: Annotated[str | None, typer.Option(help="an OpenAI-compatible server: http://host:8000/v1")] = None,
    model: Annotated[str | None, typer.Option(help="with --endpoint: the model to ask there")] = None,
    data: Annotated[Path | None, typer.Option(help="with --endpoint: rows in the released format")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="with --data: so many rows, the first ones")] = None,
    prompt: Annotated[str, typer.Option(help="with --data: default or paper")] = "default",
    temperature: Annotated[float, typer.Option(min=0, help="with --endpoint")] = 0.0,
    max_tokens: Annotated[int, typer.Option(min=1, help="with --endpoint")] = 2048,
    seed: Annotated[int, typer.Option(help="with --endpoint")] = 42,
    extra: Annotated[str, typer.Option(help="with --endpoint: further keys of the request, as JSON")] = "{}",
    concurrency: Annotated[int, typer.Option(min=1, help="with --endpoint: requests at once")] = 8,
    tries: Annotated[int, typer.Option(min=1, help="with --endpoint: tries of one row")] = 8,
    timeout: Annotated[float, typer.Option(min=0.1, help="with --endpoint: seconds for one request")] = 600.0,
    key_env: Annotated[str, typer.Option(help="the environment variable with the server's key")] = "OPENAI_API_KEY",
    price: Annotated[str | None, typer.Option(help="IN,OUT: cost of a million tokens")] = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate a model on the test rows of the run that made it (or of --run-name), or ask a server."""
    words_to_stderr(as_json)
    if endpoint is None:
        told = _evaluate_model(model_dir, name, run_name, as_json)
    else:
        from pipeline.evaluation.endpoint import Endpoint, key_of_environment

        if not model or (run_name is None) == (data is None):
            raise UserError("a server is asked for a model, on the rows of a run or of a file", value=model,
                            where="the command line", do=ENDPOINT)  # fmt: skip
        server = Endpoint(
            endpoint, model, key_of_environment(key_env), temperature, max_tokens, seed, _extra(extra), concurrency,
            tries, timeout,
        )  # fmt: skip
        with contextlib.redirect_stdout(sys.stderr if as_json else sys.stdout):
            if data is not None:
                told = _ask_about_file(server, data, limit, prompt, price)
            else:
                told = _ask_about_run(server, str(run_name), name or model_dir, price, as_json)
    if as_json:
        print_json(told)


def _evaluate_model(model_dir: str | None, name: str | None, run_name: str | None, as_json: bool) -> dict[str, Any]:
    if model_dir is None or name is None:
        raise UserError("which model, and under which name", where="the command line",
                        do=f"evaluate MODEL_DIR NAME, or {ENDPOINT}")  # fmt: skip
    folder = Path(model_dir)
    if not folder.is_dir() and (run_name is None or model_dir.startswith((".", "/", "~")) or "/" not in model_dir):
        raise UserError("no such model folder", value=model_dir, where=str(Path.cwd()),
                        do="check the path; a model of the hub needs --run-name")  # fmt: skip
    source = str(folder.resolve()) if folder.is_dir() else model_dir
    run, _ = open_run(run_name or _run_of_model(folder.resolve()))
    _run_stage(run, ["--model", source, "--name", name], as_json)
    return {"run": run.name, "model": name, "comparison": str(run.comparison)}


def _run_stage(run: RunDir, options: list[str], as_json: bool) -> None:
    """Run the evaluate stage in a process of its own; end with its exit code when it fails."""
    recipe = run.read_resolved()[0]
    stage = next((each.name for each in recipe.stages if each.kind == "evaluate"), None)
    if stage is None:
        raise UserError("the run has no evaluate stage", value=run.name, where=str(run.resolved), do="add one")
    command = [sys.executable, "-m", "pipeline.stages.evaluate", str(run.logs), stage, *options]
    environment = {**OFFLINE, **os.environ, **variables(load_cluster())}
    done = subprocess.run(command, cwd=HOME, env=environment, check=False, stdout=sys.stderr if as_json else None)
    if done.returncode:
        sys.exit(done.returncode if done.returncode in (2, 3) else 1)
    show.results(run)


def _ask_about_file(server: Any, data: Path, limit: int | None, prompt: str, price: str | None) -> dict[str, Any]:
    from pipeline.evaluation.endpoint_file import ask_endpoint, header_for, rows_of_file
    from pipeline.tasks.corr2cause import PROMPTS

    if prompt not in PROMPTS:
        raise UserError("no such prompt", value=prompt, where="--prompt", do=nearest(prompt, list(PROMPTS)))
    rows = rows_of_file(data, prompt, limit)
    folder = RunDir(output_root(load_cluster()), "endpoint").results.parent
    header = header_for(server, rows, str(data), "", "teacher", None)
    return _tell(ask_endpoint(server, rows, folder, header, _price(price)))


def _ask_about_run(server: Any, run_name: str, name: str | None, price: str | None, as_json: bool) -> dict[str, Any]:
    """Ask for the main test rows of a run; what comes stands among its models."""
    from pipeline.evaluation.endpoint_file import ask_endpoint, header_for
    from pipeline.evaluation.predictions import write_predictions
    from pipeline.recipe import NAME_PATTERN
    from pipeline.stages.rows import read_rows

    run, recipe = open_run(run_name)
    under = name or server.model.replace("/", "_")
    if not NAME_PATTERN.fullmatch(under):
        raise UserError("not a name for results", value=under, do="give one: evaluate NAME --endpoint ...")
    folder = dag.dataset_of(recipe, run)
    rows = read_rows(folder / "test.jsonl")
    header = header_for(server, rows, recipe.name, run.name, under, folder.name)
    answered = ask_endpoint(server, rows, run.results.parent, header, _price(price))
    write_predictions(run.predictions(under), answered.predictions)
    told = _tell(answered)
    _run_stage(run, ["--count"], as_json)
    return {"run": run.name, "model": under, "comparison": str(run.comparison), **told}


def _tell(answered: Any) -> dict[str, Any]:
    rows, used = answered.predictions.rows, answered.usage
    right = sum(row.correct for row in rows)
    unparsable = sum(row.answer is None for row in rows)
    tokens = ", ".join(f"{key.replace('_', ' ')} {'not known' if n is None else f'{n:,}'}" for key, n in used.items())
    show.console.print(f"{len(rows)} rows, {right} right, {unparsable} without an answer; {tokens}", soft_wrap=True)
    show.console.print(f"predictions: {answered.path}", markup=False, soft_wrap=True)
    return {"predictions": str(answered.path), "rows": len(rows), "correct": right, **used}


def _price(text: str | None) -> Any:
    from pipeline.evaluation.endpoint_file import Price

    if text is None:
        return None
    try:
        into, out = (float(part) for part in text.split(","))
    except ValueError:
        raise UserError("not two prices", value=text, where="--price", do="write IN,OUT such as 0.15,0.60") from None
    return Price(into, out)


def _extra(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = None
    if not isinstance(value, dict):
        raise UserError("not a JSON object", value=text, where="--extra", do="write it like '{\"top_p\": 0.9}'")
    return value


def _run_of_model(folder: Path) -> str:
    """The run whose stage made a model folder (or a checkpoint in it), from the folder's name."""
    root = output_root(load_cluster())
    parts = {folder.name, folder.parent.name}
    for name in known_runs(root):
        candidate = RunDir(root, name)
        stages = [entry.name for entry in candidate.read_resolved()[0].stages]
        if parts & {candidate.model(stage).name for stage in ["base", *stages]}:
            return name
    raise UserError("no run here made this model", value=str(folder), where=str(root), do="name one with --run-name")
