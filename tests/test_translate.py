"""scripts/train.py: configurations of model, data, trainer and reward, and overrides in their keys, become recipes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import PipelineError
from pipeline.load import build_recipe, load_recipe
from pipeline.run import HOME
from pipeline.settings import Tree, dump_yaml, merge, override_tree, read_yaml
from pipeline.translate import changes, is_framework_config, whole_recipe

CONFIG: Tree = {
    "model": {
        "name": "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
        "dtype": "bfloat16",
        "use_lora": True,
        "lora": {"r": 16, "alpha": 32, "dropout": 0.05},
        "gradient_checkpointing": True,
        "resume_from": None,
    },
    "data": {"name": "gsm8k", "split": "train", "template": "math_cot", "max_samples": None},
    "trainer": {
        "type": "sft",
        "output_dir": "results",
        "run_name": "my_experiment",
        "num_epochs": 3,
        "batch_size": 4,
        "gradient_accumulation_steps": 4,
        "learning_rate": 2e-5,
        "logging_steps": 10,
        "save_steps": 500,
        "eval_steps": 500,
    },
}
"""Every key that such a configuration has for SFT."""
REWARD = {"type": "math_correctness", "positive": 1.0, "negative": 0.0, "partial_credit": False}


def recipe_of(**change: Any) -> Any:
    return build_recipe("c", whole_recipe(merge(CONFIG, change), "c.yaml").tree, "c.yaml")


def test_every_key_of_a_whole_configuration_has_its_place() -> None:
    made = whole_recipe(CONFIG, "c.yaml")
    recipe = build_recipe("c", made.tree, "c.yaml")
    assert [entry.name for entry in recipe.stages] == ["preprocess", "sft", "evaluate"]
    assert (recipe.task, recipe.data.template, recipe.model.precision) == ("gsm8k", "math_cot", "bf16")
    assert recipe.model.base == CONFIG["model"]["name"] and recipe.model.lora is not None and recipe.model.lora.r == 16
    own = recipe.own("sft")
    assert (own.micro_batch_size, own.global_batch_size, own.checkpoint.every_steps) == (4, 16, 500)
    wanted = {"num_train_epochs": 3, "learning_rate": 2e-5, "logging_steps": 10, "gradient_checkpointing": True}
    assert recipe.trainer_options("sft") == wanted
    assert made.run_name == "my_experiment"
    keys = [f"{section}.{key}" for section, values in CONFIG.items() for key in values]
    assert all(any(key in line for line in made.told) for key in keys), "each is told in its new spelling"
    assert "trainer.num_epochs -> sft.num_train_epochs=3" in made.told


@pytest.mark.parametrize("kind", ["grpo", "ppo", "dpo"])
def test_the_other_trainers(kind: str) -> None:
    trainer = {"type": kind, "beta": 0.04, "learning_rate": 1e-6}
    trainer |= {"group_size": 8, "temperature": 0.8} if kind != "dpo" else {"samples": 8}
    recipe = recipe_of(trainer=trainer, **({"reward": REWARD} if kind != "dpo" else {}))
    own = recipe.own(kind)
    assert recipe.training_stages() == [kind] and own.guard.every_steps == 500
    assert (own.kl_coefficient if kind == "ppo" else recipe.trainer_options(kind)["beta"]) == 0.04
    if kind != "dpo":
        assert own.num_generations == 8 and own.reward.positive == 1.0


def test_without_lora_all_weights_are_trained_and_code_is_not_evaluated_where_nobody_can_grade() -> None:
    assert recipe_of(model={"use_lora": False, "lora": None}).model.lora is None
    assert recipe_of(model={"lora": {}}).model.lora is not None
    stages = recipe_of(data={"name": "codealpaca", "template": None}).stages
    assert [entry.name for entry in stages] == ["preprocess", "sft"]


def test_a_checkpoint_to_start_from_and_the_latest_to_go_on_from() -> None:
    made = whole_recipe(merge(CONFIG, {"model": {"resume_from": "results/checkpoint-500"}}), "c.yaml")
    assert made.tree["model"]["base"] == "results/checkpoint-500"
    told = whole_recipe(merge(CONFIG, {"trainer": {"resume_from_checkpoint": "latest"}}), "c.yaml").told
    assert any("goes on from its newest complete checkpoint by itself" in line for line in told)
    with pytest.raises(PipelineError, match="only the latest checkpoint"):
        recipe_of(trainer={"resume_from_checkpoint": "results/checkpoint-500"})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"trainer": {"num_epoch": 1}}, "unknown key: 'trainer.num_epoch' in c.yaml -> did you mean 'num_epochs'?"),
        ({"model": {"nam": "x"}}, "did you mean 'name'?"),
        ({"modle": {"name": "x"}}, "unknown section: 'modle'"),
        ({"data": {"name": "gsm9k"}}, "did you mean 'gsm8k'?"),
        ({"trainer": {"type": "rloo"}}, "trainer.type names none that is known"),
        ({"model": {"dtype": "float8"}}, "unknown dtype"),
        ({"trainer": {"save_strategy": "no"}}, "this option has another place"),
        ({"trainer": 3}, "a section must be a mapping"),
    ],
)
def test_what_is_unknown_is_refused(change: dict[str, Any], told: str) -> None:
    with pytest.raises(PipelineError) as caught:
        recipe_of(**change)
    assert told in str(caught.value)


def overridden(recipe: str, *overrides: str) -> Any:
    path = HOME / "configs" / f"{recipe}.yaml"
    tree = read_yaml(path)
    given: Tree = {}
    for each in overrides:
        given = merge(given, override_tree(each))
    assert not is_framework_config(tree)
    made = changes(given, tree, "overrides")
    return build_recipe(recipe, merge(tree, made.tree), "overrides"), made.told


def test_overrides_of_a_recipe_reach_each_of_its_training_stages() -> None:
    recipe, told = overridden("gsm8k", "trainer.num_epochs=1", "trainer.batch_size=2")
    for stage, steps in (("sft", 4), ("grpo", 8)):
        own = recipe.own(stage)
        assert (own.micro_batch_size, own.global_batch_size) == (2, 2 * steps), "as many steps accumulated as before"
        assert recipe.trainer_options(stage)["num_train_epochs"] == 1
    assert "trainer.num_epochs -> sft.num_train_epochs=1 grpo.num_train_epochs=1" in told


def test_overrides_may_name_a_trainer_and_mix_with_new_keys() -> None:
    recipe, _ = overridden(
        "gsm8k", "trainer.type=grpo", "trainer.learning_rate=2e-6", "reward.positive=2.0",
        "reward.type=math_correctness", "model.lora.r=8",
        "sft.learning_rate=1e-5", "data.max_samples=100", "data.rows.dev=50", "seed=3",
    )  # fmt: skip
    assert recipe.trainer_options("grpo")["learning_rate"] == 2e-6
    assert recipe.trainer_options("sft")["learning_rate"] == 1e-5
    assert (recipe.own("grpo").reward.positive, recipe.model.lora.r, recipe.seed) == (2.0, 8, 3)
    assert (recipe.data.max_samples, recipe.data.rows["dev"]) == (100, 50)
    with pytest.raises(PipelineError, match="the recipe has no such stage"):
        overridden("gsm8k", "trainer.type=ppo")


def test_without_old_keys_a_recipe_is_what_it_is() -> None:
    assert overridden("math-ppo")[0] == load_recipe(HOME / "configs" / "math-ppo.yaml")


def train(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(HOME / "scripts" / "train.py"), *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=120)


def test_the_command_line(tmp_path: Path) -> None:
    config = tmp_path / "gsm8k_sft.yaml"
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "1 + 1", "answer": "#### 2"}\n' * 1, encoding="utf-8")
    config.write_text(dump_yaml(merge(CONFIG, {"trainer": {"bach_size": 1}})), encoding="utf-8")
    refused = train(tmp_path, "--config", str(config), "--dry-run")
    assert refused.returncode == 2 and "did you mean 'batch_size'?" in refused.stderr
    shown = train(tmp_path, "--config", str(HOME / "configs" / "tiny-math.yaml"), "--override", "trainer.num_epochs=1",
                  "--override", "trainer.batch_size=16", "--dry-run")  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    assert "trainer.num_epochs -> sft.num_train_epochs=1 grpo.num_train_epochs=1" in shown.stderr
    assert "trainer.batch_size -> sft.micro_batch_size=16 sft.global_batch_size=16" in shown.stderr
    assert not (tmp_path / "logs").exists()
