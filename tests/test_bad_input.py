"""What is refused before anything trains: GPUs, packages, adapters, lengths, servers, each in four parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UserError, UserErrors
from pipeline.fit.cards import card_named
from pipeline.fit.settle import assumed, check_targets, for_card
from pipeline.load import build_recipe, load_recipe, recipe_file
from pipeline.recipe import Model, Recipe, Resources
from pipeline.run import HOME, RunDir
from pipeline.settings import read_yaml
from pipeline.stages.preprocess import check_context
from pipeline.training import checkpoints
from pipeline.training.arguments import fsdp_arguments
from pipeline.training.models import load_for_inference, load_for_training
from pipeline.training.packages import check_packages
from pipeline.training.served import check_served, share_gpus
from pipeline.training.settle import settled


def loaded(name: str, *overrides: str) -> Recipe:
    return load_recipe(recipe_file(HOME, name), overrides)


def model(**settings: Any) -> Model:
    return Model.model_validate({"base": "x", **settings})


# -- the GPU ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["qwen", "phi3", "deepseek", "llama2", "llama31"])
@pytest.mark.parametrize(
    ("card", "precision", "tf32"), [("rtx2080ti", "fp16", False), ("t4", "fp16", False), ("l4", "bf16", True),
                                    ("a100", "bf16", True), ("rtx4050", "bf16", True)],
)  # fmt: skip
def test_a_recipe_follows_the_gpu(name: str, card: str, precision: str, tf32: bool) -> None:
    found = for_card(loaded(name), card_named(card)).model
    assert (found.precision, found.tf32, found.attention) == (precision, tf32, "sdpa")


def test_without_a_known_gpu_the_job_settles_it() -> None:
    recipe = loaded("phi3")
    assert for_card(recipe, None) == recipe
    assert assumed(recipe, None).model.precision == "bf16"
    assert assumed(recipe, card_named("t4")).model.precision == "fp16"
    cpu = settled(model(precision="auto", tf32="auto", attention="auto"), bf16=None, gpu="the CPU")
    assert (cpu.precision, cpu.tf32, cpu.attention) == ("fp32", False, "sdpa")


def test_bf16_on_turing_is_refused() -> None:
    told = r"rtx2080ti has no bf16.*: 'bf16' in model\.precision -> use fp16, or auto"
    with pytest.raises(UserError, match=told):
        for_card(loaded("phi3", "model.precision=bf16"), card_named("rtx2080ti"))


@pytest.mark.parametrize(
    ("settings", "bf16", "installed", "told"),
    [
        ({"attention": "flash_attention_2", "precision": "fp16"}, True, False, "flash-attn is not installed"),
        ({"attention": "flash_attention_2", "precision": "fp16"}, False, True, "old with fp16 cannot run it"),
        ({"attention": "flash_attention_2", "precision": "fp32"}, True, True, "old with fp32 cannot run it"),
    ],
)
def test_flash_attention_is_refused_where_it_cannot_run(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], bf16: bool, installed: bool, told: str
) -> None:
    monkeypatch.setattr("pipeline.training.settle.find_spec", lambda name: object() if installed else None)
    with pytest.raises(UserError, match=rf"FlashAttention 2: {told}: .* in model\.attention -> use auto or sdpa"):
        settled(model(**settings), bf16=bf16, gpu="old")
    chosen = settled(model(**settings | {"attention": "auto"}), bf16=True, gpu="new").attention
    assert chosen == ("flash_attention_2" if installed and settings["precision"] != "fp32" else "sdpa")


# -- packages, targets, servers -----------------------------------------------------------------------------------


def test_what_is_not_installed_is_named_with_its_file() -> None:
    change = ["grpo.generation=vllm-colocate", "sft.optim=paged_adamw_8bit", "resources.sft.launcher=deepspeed",
              "resources.sft.deepspeed=zero3.json"]  # fmt: skip
    recipe = loaded("phi3", *change)
    check_packages(recipe, lambda package: True)
    with pytest.raises(UserErrors) as caught:
        check_packages(recipe, lambda package: False)
    told = str(caught.value)
    for line in (
        "bitsandbytes is not installed, which is needed for: 'nf4' in model.quantization -> pip install -r",
        "bitsandbytes is not installed, which is needed for: 'paged_adamw_8bit' in sft.optim",
        "deepspeed is not installed, which is needed for: 'zero3.json' in resources.sft.deepspeed",
        "vllm is not installed, which is needed for: 'vllm-colocate' in grpo.generation",
    ):
        assert line in told
    assert "grpo.generation -> pip install -r requirements-vllm.txt" in told
    check_packages(loaded("qwen"), lambda package: False)


def test_a_lora_target_of_another_architecture_is_refused_before_the_queue() -> None:
    check_targets(loaded("phi3"))
    told = r"LoRA target q_proj matches no module of: 'microsoft/Phi.* -> .*qkv_proj.*its layers have qkv_proj, o_proj"
    with pytest.raises(UserError, match=told):
        check_targets(loaded("phi3", "model.lora.target_modules=[o_proj, q_proj]"))
    check_targets(loaded("phi3", "model.lora.target_modules=all-linear"))
    check_targets(loaded("phi3", "model.base=somebody/unknown", "model.lora.target_modules=[query]"))


def test_a_server_and_its_trainers_share_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    served = ["grpo.generation=vllm-server", "resources.grpo.gpus=4"]
    with pytest.raises(UserError, match=r"shares the 4 GPUs.*: 'one a GPU' in resources\.grpo\.processes -> .*\(3\)"):
        check_served(loaded("phi3", *served))
    recipe = loaded("phi3", *served, "resources.grpo.processes=3")
    check_served(recipe)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3,5,7")
    assert share_gpus(recipe.own("grpo"), "grpo") == ("2,3,5", "7")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    with pytest.raises(UserError, match=r"leave none of these to train on: 1 in grpo\.generation_gpus"):
        share_gpus(recipe.own("grpo"), "grpo")


@pytest.mark.parametrize("option", ["use_vllm", "use_transformers_paged", "vllm_server_base_url", "fsdp"])
def test_what_one_key_decides_has_no_other(option: str) -> None:
    with pytest.raises(UserError, match=f"another place: 'grpo.{option}'.*(generation|fsdp)"):
        loaded("phi3", f"grpo.{option}=true")


def test_fsdp_needs_processes_and_renders_what_transformers_takes(tmp_path: Path) -> None:
    from transformers import TrainingArguments

    with pytest.raises(ValueError, match="fsdp shares out over processes"):
        Resources.model_validate({"fsdp": "full_shard"})
    assert fsdp_arguments(Resources()) == {}
    for kind, reshards in (("full_shard", True), ("shard_grad_op", False)):
        made = fsdp_arguments(Resources.model_validate({"fsdp": kind, "launcher": "torchrun", "gpus": 2}))
        arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, **made)
        assert arguments.fsdp and arguments.fsdp_config["reshard_after_forward"] is reshards
        assert arguments.fsdp_config["auto_wrap_policy"] == "TRANSFORMER_BASED_WRAP"


# -- weights and rows ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two base models of other widths, `small` and `wide`, and an adapter for the first."""
    from pipeline.recipe import ScratchModel
    from pipeline.training import scratch

    root = tmp_path_factory.mktemp("bases")
    for name, width in (("small", 32), ("wide", 64)):
        sizes = {"hidden_size": width, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
        made = ScratchModel.model_validate({**sizes, "num_key_value_heads": 2, "max_position_embeddings": 24})
        scratch.save_scratch(made, ["A correlates with B."], root / name, seed=1)
    adapter = load_for_training(str(root / "small"), with_lora(root / "small"))
    adapter.save_pretrained(root / "adapter")
    return root


def with_lora(base: Path) -> Model:
    return model(base=str(base), precision="fp32", lora={"r": 2})


@pytest.mark.training
def test_an_adapter_for_another_base_is_refused(bases: Path) -> None:
    load_for_training(str(bases / "adapter"), with_lora(bases / "small"))
    with pytest.raises(UserError, match=r"adapter .* is for another base model than: .*wide' in model\.base -> give"):
        load_for_training(str(bases / "adapter"), with_lora(bases / "wide"))


@pytest.mark.training
def test_an_adapter_whose_base_was_replaced_is_refused(bases: Path, tmp_path: Path) -> None:
    config = json.loads((bases / "adapter" / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({**config, "base_model_name_or_path": str(bases / "wide")})
    )
    (tmp_path / "adapter_model.safetensors").write_bytes((bases / "adapter" / "adapter_model.safetensors").read_bytes())
    told = r"the adapter does not fit the base model that it names: .*wide' in .* -> put the weights back"
    for load in (load_for_training, load_for_inference):
        with pytest.raises(UserError, match=told):
            load(str(tmp_path), with_lora(bases / "wide"))


@pytest.mark.training
def test_rows_longer_than_the_context_are_refused(bases: Path, tmp_path: Path) -> None:
    import pyarrow as pa

    from pipeline.training.encode import write_encoded

    tree = read_yaml(HOME / "configs" / "smoke.yaml") | {"stages": ["preprocess", "sft"]}
    for name in ("grpo", "evaluate"):
        tree.pop(name)
        tree["resources"].pop(name)
    tree["data"]["rows"].pop("grpo")
    tree["model"] = {"base": str(bases / "small"), "precision": "fp32"}
    recipe = build_recipe("x", tree, "x.yaml")
    for tokens, fits in ((24, True), (25, False)):
        ids = pa.array([[1] * tokens], type=pa.list_(pa.int32()))
        write_encoded(tmp_path / "sft.arrow", iter([pa.table({"input_ids": ids, "labels": ids})]), 1, "sft")
        if fits:
            check_context(recipe, tmp_path)
            continue
        with pytest.raises(UserError, match=r"longer than the limit of 24 tokens.*: 25 in sft \(the context of"):
            check_context(recipe, tmp_path)


@pytest.mark.training
def test_rollouts_longer_than_the_context_are_refused(bases: Path) -> None:
    from pipeline.stages.rollouts import check_rollouts
    from pipeline.training.models import load_tokenizer

    tokenizer, config = load_tokenizer(bases / "small"), load_for_training(str(bases / "small"), plain(bases)).config
    longest = len(tokenizer("A correlates with B.")["input_ids"])
    check_rollouts(tokenizer, ["A", "A correlates with B."], 24 - longest, config, "grpo")
    told = rf"the longest prompt has {longest} tokens; .* the 24 of .*: {25 - longest} in grpo\.max_completion_length"
    with pytest.raises(UserError, match=told):
        check_rollouts(tokenizer, ["A", "A correlates with B."], 25 - longest, config, "grpo")


def plain(bases: Path) -> Model:
    return model(base=str(bases / "small"), precision="fp32")


def test_a_checkpoint_of_another_recipe_is_never_loaded(tmp_path: Path) -> None:
    run = RunDir(tmp_path, "r")
    folder = run.checkpoints("sft") / "checkpoint-5"
    folder.mkdir(parents=True)
    (folder / "weights").write_text("w")
    checkpoints.seal(folder, step=5, world_size=1, fingerprint="a", metrics_bytes=0)
    assert checkpoints.newest(run.checkpoints("sft"), "b") is None
    assert checkpoints.prepare(run.checkpoints("sft"), "b", 1) is None
    assert [path.name for path in run.checkpoints("sft").iterdir()] == ["set-aside-checkpoint-5"]
