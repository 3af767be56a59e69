"""Flat keys of training scripts: what they become, what is refused, what stands on a script's command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UserError, UserErrors
from pipeline.flat_keys import flat_recipe, is_flat, kind_of, translate
from pipeline.load import build_recipe, load_recipe, recipe_file
from pipeline.run import HOME
from pipeline.script import Output, Words, command, split
from pipeline.settings import dump_yaml

SFT: dict[str, Any] = {
    "model_name_or_path": "meta-llama/Llama-2-7b-hf", "use_lora": True, "lora_r": 16, "lora_alpha": 32,
    "lora_dropout": 0.05, "lora_target_modules": "q_proj,v_proj", "use_4bit": True, "use_nested_quant": True,
    "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": "bfloat16", "max_seq_length": 4096,
    "num_train_epochs": 3, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 4,
    "learning_rate": 2e-5, "warmup_ratio": 0.03, "optim": "paged_adamw_8bit", "gradient_checkpointing": True,
    "bf16": True, "fp16": False, "tf32": True, "use_flash_attention": True, "report_to": "wandb",
    "run_name": "llama-sft", "max_train_samples": 10000, "save_steps": 200, "eval_steps": 100,
    "output_dir": "./models/sft_model", "trust_remote_code": True, "dataset_path": "./data/processed/sft", "seed": 7,
}  # fmt: skip
GRPO: dict[str, Any] = {
    "model_name_or_path": "./models/sft_model", "num_generations": 4, "temperature": 0.8, "beta": 0.05,
    "correct_reward": 1.0, "incorrect_reward": -1.0, "reasoning_length_bonus": 0.1, "max_completion_length": 256,
    "max_prompt_length": 512, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 8, "fp16": True,
    "eval_steps": 50, "report_to": "none",
}  # fmt: skip


def test_a_whole_file_is_a_recipe() -> None:
    assert is_flat(SFT) and kind_of(SFT) == "sft"
    recipe = build_recipe("sft_config", flat_recipe(SFT, "sft_config.yaml"), "sft_config.yaml")
    model, section = recipe.model, recipe.sections["sft"]
    assert [entry.name for entry in recipe.stages] == ["preprocess", "sft"]
    assert (model.base, model.quantization, model.precision, model.attention, model.tf32) == (
        "meta-llama/Llama-2-7b-hf", "nf4", "bf16", "auto", True,
    )  # fmt: skip
    assert model.lora is not None and (model.lora.r, model.lora.target_modules) == (16, ["q_proj", "v_proj"])
    assert (section["global_batch_size"], section["micro_batch_size"], section["max_length"]) == (16, 4, 4096)
    assert (section["learning_rate"], section["warmup_steps"], section["optim"]) == (2e-5, 0.03, "paged_adamw_8bit")
    assert section["checkpoint"] == {"every_steps": 200} and recipe.data.rows == {"sft": 10000} and recipe.seed == 7
    assert (recipe.tracking.report_to, recipe.tracking.run_name) == (["wandb"], "llama-sft")


def test_a_grpo_file_keeps_its_rewards() -> None:
    assert kind_of(GRPO) == "grpo"
    recipe = build_recipe("grpo_config", flat_recipe(GRPO, "x.yaml"), "x.yaml")
    own = recipe.own("grpo")
    assert (own.rewards.correct_reward, own.rewards.incorrect_reward, own.rewards.reasoning_length_bonus) == (
        1,
        -1,
        0.1,
    )
    assert (own.num_generations, own.global_batch_size, own.guard.every_steps) == (4, 16, 50)
    assert recipe.trainer_options("grpo") == {"temperature": 0.8, "beta": 0.05, "max_completion_length": 256}
    assert (recipe.model.precision, recipe.model.lora, recipe.tracking.report_to) == ("fp16", None, [])


def test_batches_count_for_all_processes() -> None:
    def batch(flat: dict[str, Any], section: dict[str, Any], processes: int) -> dict[str, Any]:
        return translate(flat, "sft", "sft2", section, processes, "x").changes

    both = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 8}
    assert batch(both, {}, 4) == {"sft2.micro_batch_size": 2, "sft2.global_batch_size": 64}
    recipe = {"global_batch_size": 32, "micro_batch_size": 4}
    assert batch({"per_device_train_batch_size": 1}, recipe, 2) == {"sft2.micro_batch_size": 1}
    assert batch({"gradient_accumulation_steps": 2}, recipe, 2)["sft2.global_batch_size"] == 16


@pytest.mark.parametrize(
    ("flat", "told"),
    [
        ({"lerning_rate": 1e-5}, r"unknown key: 'lerning_rate' in f\.yaml -> did you mean 'learning_rate'"),
        ({"use_8bit": True}, "8-bit weights are not trained here: 'use_8bit'.*use_4bit"),
        ({"bnb_4bit_quant_type": "fp4"}, "bnb_4bit_quant_type is always nf4: 'fp4'"),
        ({"use_nested_quant": False}, "use_nested_quant is always True: False"),
        ({"bf16": True, "fp16": True}, "bf16 and fp16 are both asked for"),
        ({"bf16": True, "bnb_4bit_compute_dtype": "float16"}, "a stage has one precision"),
        ({"torch_dtype": "float15"}, "unknown torch_dtype: 'float15'.*did you mean 'float16'"),
        ({"deepspeed": "configs/no.json"}, "no such DeepSpeed configuration: 'configs/no.json'.*zero3.json"),
        ({"dataset_path": "no/such"}, "no prepared data set: 'no/such' in dataset_path in f.yaml.*prepare_sft_data"),
    ],
)  # fmt: skip
def test_what_has_no_meaning_is_refused(flat: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        translate(flat, "sft", "sft", {}, 1, "f.yaml")


def test_every_wrong_key_is_told() -> None:
    with pytest.raises(UserErrors) as caught:
        translate({"lerning_rate": 1, "use_8bit": True, "no_such_key_at_all": 1}, "sft", "sft", {}, 1, "f.yaml")
    assert len(caught.value.errors) == 3


def test_keys_without_a_place_say_why() -> None:
    found = translate(SFT, "sft", "sft", {}, 1, "x")
    assert set(found.dropped) == {"trust_remote_code", "eval_steps", "dataset_path"}
    assert found.output == "./models/sft_model"


def test_no_lora_means_none() -> None:
    found = translate({**SFT, "use_lora": False, "use_4bit": False}, "sft", "sft", {}, 1, "x")
    assert found.changes["model.lora"] is None and not any(key.startswith("model.lora.") for key in found.changes)


def test_a_prepared_data_set_is_read_by_its_prediction_file(tmp_path: Path) -> None:
    (tmp_path / "teacher.jsonl").write_text("")
    found = translate({"dataset_path": str(tmp_path)}, "sft", "sft", {}, 1, "x")
    assert found.changes == {"data.completions": "teacher", "data.teacher": str(tmp_path / "teacher.jsonl")}


def test_the_words_of_a_command_line_are_sorted() -> None:
    words = ["--local_rank=1", "configs/x.yaml", "--learning_rate", "2e-5", "--use_4bit", "true", "--lora_r=16",
             "sft.max_steps=3", "--run-name", "mine", "--gradient_checkpointing", "--replace"]  # fmt: skip
    assert split(words) == Words(
        "configs/x.yaml", ["sft.max_steps=3"],
        {"learning_rate": 2e-5, "use_4bit": True, "lora_r": 16, "gradient_checkpointing": True},
        ["--run-name", "mine", "--replace"],
    )  # fmt: skip
    with pytest.raises(UserError, match="a second recipe: 'b'"):
        split(["a", "b"])
    with pytest.raises(UserError, match="an option without its value: '--run-name'"):
        split(["a", "--run-name"])


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "SLURM_GPUS_ON_NODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def said(kind: str, words: list[str], folder: Path) -> list[str]:
    """The overrides of the `run` that a script's words stand for, all of which the recipe takes."""
    call, _ = command(kind, split(words), folder)
    assert call[0] == "run" and call[-2:] == ["--via", "local"]
    overrides = [word for word in call[2:] if "=" in word]
    load_recipe(Path(call[1]), overrides)
    return overrides


@pytest.mark.usefixtures("alone")
def test_flat_flags_change_a_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["phi3", "--learning_rate", "2e-5", "--use_4bit", "true", "--lora_r", "16"]
    assert said("sft", words, tmp_path) == [
        "sft.learning_rate=2e-05", "model.quantization=nf4", "model.lora.r=16",
    ]  # fmt: skip
    told = capsys.readouterr().err
    assert len(told.splitlines()) == 1 and told.startswith("now spelled: bash run_pipeline.sh ")
    assert "sft.learning_rate=2e-05 model.quantization=nf4 model.lora.r=16 --until sft" in told
    assert said("sft", ["phi3"], tmp_path) == [] and not capsys.readouterr().err


@pytest.mark.usefixtures("alone")
def test_a_stage_after_another_is_run_alone(tmp_path: Path) -> None:
    assert command("grpo", split(["phi3"]), tmp_path)[0][-4:-2] == ["--only", "grpo"]
    with pytest.raises(UserError, match=r"no grpo stage.*deepseek"):
        command("grpo", split(["deepseek"]), tmp_path)


@pytest.mark.usefixtures("alone")
def test_flags_alone_are_a_recipe_too(tmp_path: Path) -> None:
    words = ["--model_name_or_path", "Qwen/Qwen2.5-1.5B-Instruct", "--output_dir", str(tmp_path / "m"), "--lora_r", "8"]
    call, output = command("sft", split(words), tmp_path)
    assert Path(call[1]).name == "m.yaml" and output == Output(tmp_path / "m", HOME / "models" / "m_sft_model")
    with pytest.raises(UserError, match="neither a recipe nor a model"):
        command("sft", split(["--learning_rate", "1e-5"]), tmp_path)


@pytest.mark.usefixtures("alone")
def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path) -> None:
    own = str(HOME / "logs" / "phi3" / "sft" / "checkpoints" / "checkpoint-5")
    for given in ("true", own):
        command("sft", split(["phi3", "--resume_from_checkpoint", given]), tmp_path)
    with pytest.raises(UserError, match=r"a checkpoint of another recipe or run: 'x/checkpoint-5'.*leave it out"):
        command("sft", split(["phi3", "--resume_from_checkpoint", "x/checkpoint-5"]), tmp_path)


@pytest.mark.usefixtures("alone")
def test_a_grpo_file_is_not_trained_by_sft(tmp_path: Path) -> None:
    path = tmp_path / "grpo_config.yaml"
    path.write_text(dump_yaml(GRPO))
    with pytest.raises(UserError, match=r"a file for GRPO.*train_grpo"):
        command("sft", split([str(path)]), tmp_path)


def test_below_a_launcher_the_processes_are_its(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    group = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "4", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in group.items():
        monkeypatch.setenv(name, value)
    path = tmp_path / "sft_config.yaml"
    path.write_text(dump_yaml({**SFT, "deepspeed": str(HOME / "configs" / "deepspeed" / "zero3.json")}))
    found = said("sft", [str(path)], tmp_path)
    assert {"sft.global_batch_size=64", "resources.sft.launcher=deepspeed", "resources.sft.processes=4"} <= set(found)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert "resources.sft.launcher=accelerate" in said("sft", ["phi3"], tmp_path)


def test_the_model_is_found_at_output_dir(tmp_path: Path) -> None:
    model = tmp_path / "models" / "r_sft_model"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    output = Output(tmp_path / "models" / "sft_model", model)
    for _ in range(2):
        output.check()
        output.point()
    assert (tmp_path / "models" / "sft_model" / "config.json").read_text() == "{}"
    assert (tmp_path / "models" / "sft_model").readlink() == Path("r_sft_model")
    Output(model, model).check()
    other = tmp_path / "other"
    other.mkdir()
    (other / "precious").write_text("")
    with pytest.raises(UserError, match=r"output_dir is there and is no link.*move it away"):
        Output(other, model).check()


def test_every_deepspeed_configuration_is_one(tmp_path: Path) -> None:
    import json

    for stage, offload in ((2, False), (2, True), (3, False), (3, True)):
        path = HOME / "configs" / "deepspeed" / f"zero{stage}{'_offload' if offload else ''}.json"
        zero = json.loads(path.read_text())["zero_optimization"]
        assert zero["stage"] == stage and ("offload_optimizer" in zero) == offload
        assert ("offload_param" in zero) == (offload and stage == 3)
    assert recipe_file(HOME, "phi3").name == "phi3.yaml"
