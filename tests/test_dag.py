"""Stages, edges and fingerprints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline import dag
from pipeline.load import build_recipe, load_recipe, recipe_file
from pipeline.recipe import Recipe
from pipeline.run import HOME, RunDir


def prints(recipe: Recipe, root: Path = HOME) -> dict[str, str]:
    return {name: stage.fingerprint for name, stage in dag.build(recipe, RunDir(root, "r")).items()}


def changed(*overrides: str) -> set[str]:
    path = recipe_file(HOME, "tiny")
    before, after = prints(load_recipe(path)), prints(load_recipe(path, overrides))
    return {name for name in before if before[name] != after[name]}


def test_a_change_reaches_its_stage_and_all_below() -> None:
    assert changed("sft.learning_rate=0.5") == {"sft", "grpo", "evaluate"}
    assert changed("grpo.beta=0.5") == {"grpo", "evaluate"}
    assert changed("evaluate.max_new_tokens=7") == {"evaluate"}
    assert changed("data.rows.test=7") == {"preprocess", "sft", "grpo", "evaluate"}
    assert changed("model.precision=bf16") == {"sft", "grpo", "evaluate"}
    assert changed("model.scratch.hidden_size=64") == {"preprocess", "sft", "grpo", "evaluate"}
    assert changed("seed=7") == {"preprocess", "sft", "grpo", "evaluate"}


def test_what_does_not_change_results_changes_no_fingerprint() -> None:
    assert changed("sft.micro_batch_size=4", "resources.sft.time=09:00:00", "sft.logging_steps=3") == set()
    assert changed("tracking.report_to=[tensorboard]", "health.stop=true", "sft.checkpoint.every_steps=5") == set()


def test_a_changed_data_file_is_a_changed_stage(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    path = recipe_file(HOME, "tiny")
    file.write_text("a")
    before = prints(load_recipe(path, [f"data.source={file}"]))
    file.write_text("b")
    assert prints(load_recipe(path, [f"data.source={file}"]))["preprocess"] != before["preprocess"]


def test_needs_default_to_the_stage_before() -> None:
    stages = dag.build(load_recipe(recipe_file(HOME, "tiny")), RunDir(HOME, "r"))
    assert [stage.needs for stage in stages.values()] == [(), ("preprocess",), ("sft",), ("grpo",)]
    assert dag.ancestors(stages, "grpo") == ["preprocess", "sft"]
    assert dag.descendants(stages, "sft") == ["grpo", "evaluate"]


def test_needs_may_be_given() -> None:
    tree: dict[str, Any] = {
        "stages": ["preprocess", "sft", {"name": "sft2", "kind": "sft", "needs": ["preprocess"]}],
        "model": {"scratch": {}},
        "sft": {"global_batch_size": 8},
        "sft2": {"global_batch_size": 8, "learning_rate": 1.0},
    }
    stages = dag.build(build_recipe("x", tree, "x"), RunDir(HOME, "r"))
    assert stages["sft2"].needs == ("preprocess",)


def test_the_sources_of_a_stage_are_those_it_imports() -> None:
    names = {path.relative_to(HOME).as_posix() for path in dag.imported_files("pipeline.stages.preprocess")}
    assert {"pipeline/stages/preprocess.py", "pipeline/causal/trace.py", "pipeline/errors.py"} <= names
    assert "pipeline/cli.py" not in names
    assert not any(name.startswith("pipeline/submit") for name in names)
