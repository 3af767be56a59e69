"""The model card beside a saved model: what it is made of, so that whoever finds the folder knows."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipeline import dag
from pipeline.recipe import Recipe
from pipeline.records import read_json, write_atomic
from pipeline.run import RunDir
from pipeline.settings import dump_yaml

PACKAGES = ("torch", "transformers", "trl", "peft", "datasets")
NOT_METRICS = ("time", "step", "epoch", "health")


def write_card(run: RunDir, recipe: Recipe, stage: str, source: str, folder: Path) -> None:
    """Write README.md into a model's folder. `source` is the model that the stage began with."""
    write_atomic(folder / "README.md", card(run, recipe, stage, source))


def card(run: RunDir, recipe: Recipe, stage: str, source: str) -> str:
    """The text of a model card: Hugging Face's header, then data, settings, metrics, versions."""
    data = dag.dataset_of(recipe, run)
    base = recipe.model.base or "made from scratch"
    header: dict[str, Any] = {"library_name": "peft" if recipe.model.lora else "transformers"}
    header |= {"base_model": recipe.model.base} if recipe.model.base else {}
    header |= {"pipeline_tag": "text-generation", "tags": ["rlcausality", recipe.task, recipe.stage(stage).kind]}
    parts = (read_json(data / "summary.json") or {}).get("parts", {})
    rows = [f"| {name} | {facts.get('rows', '')} | {facts.get('classes', '')} |" for name, facts in parts.items()]
    last: dict[str, Any] = next(
        (line for line in reversed(run.read_metrics(stage)) if "loss" in line or "train_loss" in line), {}
    )
    numbers = [f"| {k} | {v:.6g} |" for k, v in last.items() if k not in NOT_METRICS and isinstance(v, int | float)]
    revision = f" at revision {recipe.model.revision}" if recipe.model.revision else ""
    lines = [
        f"---\n{dump_yaml(header)}---\n",
        f"# {run.name}, stage {stage}\n",
        f"Base model: {base}{revision}. The stage began with `{Path(source).name}`. Task: {recipe.task}.",
        f"How it compares with its base, with intervals: `evaluation_results/{run.name}/report.html` of the run.\n",
        f"## Data\n\n`data.source: {recipe.data.source}`, data set {data.name}.\n",
        "| part | rows | equivalence classes |\n|---|---|---|",
        *rows,
        f"\n## Settings\n\n```yaml\n{dump_yaml(_settings(recipe, stage))}```\n",
        f"## Last metrics of training (step {last.get('step', 'unknown')})\n\n| metric | value |\n|---|---|",
        *numbers,
        "\n## Versions\n\n" + ", ".join(f"{name} {version(name)}" for name in PACKAGES),
    ]
    return "\n".join(lines) + "\n"


def _settings(recipe: Recipe, stage: str) -> dict[str, Any]:
    """What decides on the weights beside the data."""
    model = recipe.model.model_dump(exclude_none=True)
    return {"seed": recipe.seed, "model": model, stage: recipe.sections[stage]}
