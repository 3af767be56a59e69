"""Recipes: what is taken, what is refused, and in which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UserError
from pipeline.load import build_recipe, dump_recipe, load_recipe, recipe_file, recipe_names
from pipeline.run import HOME
from pipeline.trainer_options import trainer_options


def tree(**changes: Any) -> dict[str, Any]:
    return {
        "stages": ["preprocess", "sft", "grpo", "evaluate"],
        "model": {"scratch": {}, "precision": "fp32"},
        "sft": {"global_batch_size": 8},
        "grpo": {"global_batch_size": 16, "num_generations": 8},
        **changes,
    }


def refused(**changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        build_recipe("x", tree(**changes), "x.yaml")
    return str(caught.value)


@pytest.mark.parametrize("name", recipe_names(HOME))
def test_every_recipe_loads_and_round_trips(name: str) -> None:
    recipe = load_recipe(recipe_file(HOME, name))
    assert recipe.name == name
    assert build_recipe(name, dump_recipe(recipe), "dumped") == recipe


def test_every_problem_is_told_at_once() -> None:
    told = refused(
        sede=1,
        model={"scratch": {"hiden_size": 3}, "precision": "fp31"},
        sft={"global_batch_size": "8", "learning_rate": "1e-5", "lerning_rate": 1.0, "bf16": True},
        grpo={"global_batch_size": 10, "num_generations": 8},
        resources={"sfft": {}, "sft": {"memory": "12"}},
    )
    for part in [
        "did you mean 'seed'?",
        "did you mean 'hidden_size'?",
        "model.precision",
        "sft.global_batch_size: Input should be a valid integer: '8'",
        "sft.learning_rate must be float, not str: '1e-5'",
        "did you mean 'learning_rate'?",
        "use model.precision",
        "global_batch_size 10 must divide by num_generations 8",
        "did you mean 'sft'?",
        "memory is written as a number",
    ]:
        assert part in told
    assert len(told.splitlines()) == 10


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"stages": None}, "stages must be a list"),
        ({"stages": ["sft", "sft"]}, "two stages have one name"),
        ({"stages": ["sftt"]}, "did you mean 'sft'?"),
        ({"stages": [{"name": "a b", "kind": "sft"}]}, "not a stage name"),
        ({"stages": [{"name": "data", "kind": "sft"}]}, "not a stage name"),
        ({"stages": ["preprocess", {"name": "sft", "needs": ["preproces"]}]}, "did you mean 'preprocess'?"),
        ({"model": {}}, "give model.base"),
        ({"model": {"base": "x", "scratch": {}}}, "not both"),
        ({"model": {"base": "x", "quantization": "nf4"}}, "add model.lora"),
        ({"data": {"max_variables": 25}}, "24"),
        ({"data": {"rows": {"sftt": 3}}}, "did you mean 'sft'?"),
        ({"sft": {"global_batch_size": 8, "max_seq_length": 512}}, "use max_length"),
        ({"sft": {"global_batch_size": 8, "per_device_train_batch_size": 2}}, "use micro_batch_size"),
        ({"sft": {"global_batch_size": 8, "packing": "yes please"}}, "must be bool"),
        ({"sft": {"global_batch_size": 8, "num_generations": 2}}, "unknown option"),
        ({"sft": [1]}, "a section must be a mapping"),
        ({"resources": {"sft": {"gpus": 2}}}, "launcher none starts one process"),
        ({"resources": {"sft": {"time": "soon"}}}, "HH:MM:SS"),
    ],
)
def test_refusals(changes: dict[str, Any], part: str) -> None:
    assert part in refused(**changes)


def test_old_spelling_of_the_source_is_taken() -> None:
    assert build_recipe("x", tree(data={"path": "a.csv"}), "x.yaml").data.source == "a.csv"


def test_a_second_stage_of_a_kind_has_its_own_section() -> None:
    stages = ["preprocess", "sft", "grpo", {"name": "grpo2", "kind": "grpo"}]
    recipe = build_recipe("x", tree(stages=stages, grpo2={"global_batch_size": 32, "beta": 0.1}), "x.yaml")
    assert recipe.own("grpo2").global_batch_size == 32
    assert recipe.trainer_options("grpo2") == {"beta": 0.1}
    assert recipe.training_stages() == ["sft", "grpo", "grpo2"]


def test_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean tiny"):
        recipe_file(HOME, "tinny")
    with pytest.raises(UserError, match="no such recipe file"):
        recipe_file(HOME, "absent.yaml")


def test_trainer_options_are_those_of_the_installed_trainers() -> None:
    import dataclasses

    from trl import GRPOConfig, SFTConfig

    for kind, config in {"sft": SFTConfig, "grpo": GRPOConfig}.items():
        real = {field.name for field in dataclasses.fields(config) if field.init}
        assert real - set(trainer_options(kind)) == set()


def test_overrides_reach_the_recipe() -> None:
    path = recipe_file(HOME, "tiny")
    recipe = load_recipe(path, ["sft.learning_rate=1e-4", "data.rows.sft=7"])
    assert recipe.trainer_options("sft")["learning_rate"] == 1e-4
    assert recipe.data.rows["sft"] == 7
    assert recipe.data.rows["test"] == load_recipe(path).data.rows["test"]


def test_an_override_error_names_its_origin() -> None:
    with pytest.raises(UserError, match=r"sft\.learning_rat'.*tiny\.yaml with the overrides given.*did you mean"):
        load_recipe(Path(recipe_file(HOME, "tiny")), ["sft.learning_rat=1"])
