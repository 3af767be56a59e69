"""The verbs of the causal engine: `corr2cause generate | solve | explain | check | audit`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from rich.table import Table

from pipeline import show
from pipeline.causal import beyond, claims, files, trace
from pipeline.causal.generate import Balance, Style
from pipeline.causal.random_dags import Family
from pipeline.causal.released import Labels, Version
from pipeline.causal.rows_file import read_rows
from pipeline.causal.solve_file import TABLES, Totals, described, read_text, solve_rows, solve_rows_into, solve_text
from pipeline.causal.sources import Dags
from pipeline.causal.text import Parsed, read_hypothesis, read_row
from pipeline.causal.wording import load_wording
from pipeline.errors import UserError
from pipeline.evaluation.audit import audit as audit_files
from pipeline.evaluation.audit_table import audit_tables
from pipeline.settings import nearest

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Corr2Cause data: make, solve, explain, audit.")

Out = Annotated[Path | None, typer.Option(help="write JSON lines to this file")]
Source = Annotated[Path, typer.Argument(help="a CSV or parquet file of rows, or a text with one premise")]


def _one_of(value: str, choices: Any, flag: str) -> Any:
    known = list(get_args(choices))
    if value not in known:
        raise UserError("unknown value", value=value, where=flag, do=nearest(value, known))
    return value


@app.command()
def generate(
    out: Annotated[Path, typer.Option(help="folder for train, dev and test")],
    version: Annotated[str | None, typer.Option(help="v2, the published one, or v1, the paper's")] = None,
    max_variables: Annotated[int, typer.Option(help="2 to 6")] = 6,
    labels: Annotated[
        str, typer.Option(help="released (with its bugs), corrected, or clean (2,201 classes)")
    ] = "released",
    config: Annotated[
        str, typer.Option(help="default, perturbation_by_paraphrasing or ..._by_refactorization")
    ] = "default",
    form: Annotated[str, typer.Option("--format", help="csv or parquet")] = "csv",
    seed: Annotated[int, typer.Option(help="settles all that is random")] = 0,
    variables: Annotated[str | None, typer.Option(help="new random rows: 7, 7-10 or 5,7,10 variables")] = None,
    rows: Annotated[str, typer.Option(help="with --variables: train,dev,test rows")] = "10000,500,1000",
    balance: Annotated[str, typer.Option(help="with --variables: natural, label or template")] = "natural",
    graphs: Annotated[str, typer.Option(help="above six variables: erdos-renyi or scale-free")] = "erdos-renyi",
    degree: Annotated[float, typer.Option(help="above six variables: neighbours of a variable")] = 2.5,
    premises: Annotated[int, typer.Option(help="above six variables: classes a set and number of variables")] = 100,
    relabel: Annotated[bool, typer.Option(help="with --variables: random letters")] = True,
    paraphrase: Annotated[bool, typer.Option(help="with --variables: two wordings, pairs in either order")] = False,
    refactorize: Annotated[float, typer.Option(min=0, max=1, help="with --variables: share with Z, Y, X")] = 0.0,
    wording: Annotated[Path | None, typer.Option(help="with --variables: a YAML file of another wording")] = None,
) -> None:
    """Write train, dev and test files: the published rows, or with --variables new random ones."""
    _one_of(form, files.Format, "--format")
    if variables is None:
        made = files.Choice(
            _one_of(version or ("v2" if config == "default" else "v1"), Version, "--version"), max_variables,
            _one_of(labels, Labels, "--labels"), _one_of(config, files.Config, "--config"), seed,
        )  # fmt: skip
        written = files.write(out, made, form)  # type: ignore[arg-type]
    else:
        drawn = beyond.Choice(
            beyond.read_numbers(variables), beyond.read_counts(rows), _one_of(balance, Balance, "--balance"), seed,
            Dags(_one_of(graphs, Family, "--graphs"), degree, premises, seed),
            Style(relabel, paraphrase, refactorize, load_wording(wording) if wording else None),
        )  # fmt: skip
        written = beyond.write(out, drawn, form)  # type: ignore[arg-type]
    for each in written:
        changed = f", {each.changed:,} labels changed" if labels == "corrected" and variables is None else ""
        show.console.print(f"{each.path}: {each.rows:,} rows, {each.valid:,} valid{changed}", soft_wrap=True)


@app.command()
def solve(file: Source, out: Out = None) -> None:
    """Answer every hypothesis exactly, with a DAG that refutes it where it is invalid."""
    if file.suffix not in TABLES:
        for hypothesis, solution, premise in solve_text(file):
            told = described(solution, premise)
            refuted = f"; not in {told['witness']}" if told["witness"] else ""
            show.console.print(f"{told['verdict']:<13} {hypothesis}{refuted}", markup=False, soft_wrap=True)
        return
    totals = Totals()
    if out is not None:
        solve_rows_into(file, out, totals)
    else:
        for each in solve_rows(file, totals):
            print(json.dumps(each, ensure_ascii=False))
    _tell_totals(totals, out)


def _tell_totals(totals: Totals, out: Path | None) -> None:
    counted = ", ".join(f"{count:,} {verdict}" for verdict, count in sorted(totals.verdicts.items()))
    print(f"{counted or 'no row'}; {totals.unreadable:,} unreadable", file=sys.stderr)
    if totals.labelled:
        print(f"{totals.disagree:,} of {totals.labelled:,} labels differ from the solver's", file=sys.stderr)
    if out is not None:
        print(f"answers: {out}", file=sys.stderr)
    if totals.unreadable:
        raise typer.Exit(1)


@app.command()
def explain(
    file: Source,
    length: Annotated[str, typer.Option(help="full, short or answer")] = "full",
    row: Annotated[int | None, typer.Option(help="this row of a table alone, counted from 0")] = None,
    out: Out = None,
) -> None:
    """Write the worked reasoning of each row (docs/trace.md), ending in `Therefore: Yes` or `No`; `check` reads it."""
    style: trace.Style = _one_of(length, trace.Style, "--length")
    if file.suffix not in TABLES:
        premise, given = read_text(file)
        for text in given:
            told = trace.write(Parsed(premise, read_hypothesis(text, premise.names)), style)
            show.console.print(f"{text}\n  {told}", markup=False, soft_wrap=True)
        return
    _write_lines(_traces(file, style, row), out, "traces")


def _traces(file: Path, style: trace.Style, only: int | None) -> Iterator[dict[str, Any]]:
    found = False
    for number, record in enumerate(read_rows(file)):
        if only in (None, number):
            found = True
            try:
                told = trace.write(read_row(record.get("input", "")), style)
                yield {"row": {"row": number, **record}, "completion": told}
            except UserError as error:
                yield {"row": number, "error": f"row {number}: {error}"}
    if not found:
        raise UserError("no such row", value=only, where=str(file), do="rows are counted from 0")


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help='JSON lines {"row": {"input": ...}, "completion": ...}')], out: Out = None
) -> None:
    """Judge every claim of every completion true or false of its premise."""
    _write_lines(_judged(file), out, "claims")


def _judged(file: Path) -> Iterator[dict[str, Any]]:
    try:
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines):
                yield _judge_line(number, line)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError("cannot read", value=str(error)[:80], where=str(file), do="check the file") from None


def _judge_line(number: int, line: str) -> dict[str, Any]:
    try:
        row, completion = _row_of(line)
        found = claims.check(completion, row)
    except UserError as error:
        return {"row": number, "error": f"line {number + 1}: {error}"}
    return {"row": number, "true": all(each.true for each in found), "claims": [asdict(each) for each in found]}


def _row_of(line: str) -> tuple[Parsed, str]:
    form = '{"row": {"input": "Premise: ..."}, "completion": "..."}'
    try:
        given = json.loads(line)
        return read_row(str(given["row"]["input"])), str(given["completion"])
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(f"a line is {form}", value=line[:60], do=f"mend it ({error})") from None


def _write_lines(found: Iterator[dict[str, Any]], out: Path | None, what: str) -> None:
    """Write objects to a file or to the terminal; ends with 1 when one of them is an error."""
    good, bad, false = 0, 0, 0
    file = out.open("w", encoding="utf-8") if out else sys.stdout
    for each in found:
        print(json.dumps(each, ensure_ascii=False), file=file)
        good, bad = good + ("error" not in each), bad + ("error" in each)
        false += sum(not claim["true"] for claim in each.get("claims", ()))
    if out:
        file.close()
        print(f"{what}: {out}", file=sys.stderr)
    told = f", {false:,} false claims" if what == "claims" else ""
    print(f"{good:,} rows{told}; {bad:,} unreadable", file=sys.stderr)
    if bad:
        raise typer.Exit(1)


@app.command()
def audit(
    paths: Annotated[list[Path], typer.Argument(help="CSV or parquet files with input and label", metavar="FILE...")],
    limit: Annotated[int, typer.Option(help="tokens that a model takes")] = 512,
    tokenizer: Annotated[Path | None, typer.Option(help="count tokens by this tokenizer.json; else words")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Wrong labels, impossible premises, repetitions, leaks between the files, shortcuts, lengths."""
    found = audit_files(paths, limit, _counter(tokenizer)) if tokenizer else audit_files(paths, limit)
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        for each in audit_tables(found):
            show.console.print(each if isinstance(each, Table) else str(each), soft_wrap=True)
    if any(each["unreadable"]["count"] for each in found["files"]):
        raise typer.Exit(1)


def _counter(path: Path) -> Any:
    from tokenizers import Tokenizer

    if not path.is_file():
        raise UserError("no such tokenizer file", value=str(path), where="--tokenizer", do="give a tokenizer.json")
    loaded = Tokenizer.from_file(str(path))
    return lambda text: len(loaded.encode(text).ids)
