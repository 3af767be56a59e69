"""What training stages share: batches, tokens with loss, tokenizers, adapters, generation, warnings, launch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.causal.generate import sample
from pipeline.dag import Stage
from pipeline.errors import UserError
from pipeline.evaluation.generate import complete
from pipeline.load import build_recipe
from pipeline.recipe import Health, Lora, Model, Resources, ScratchModel
from pipeline.run import HOME, RunDir
from pipeline.settings import read_yaml
from pipeline.tasks.corr2cause import message, worked
from pipeline.training import scratch
from pipeline.training.batch import Batch, derive
from pipeline.training.callbacks import health_warnings
from pipeline.training.encode import IGNORED, check_lengths, encode
from pipeline.training.launchers import gpus_at_hand, launch_command, processes
from pipeline.training.models import (
    end_of_turn,
    load_for_inference,
    load_for_training,
    load_tokenizer,
    render_prompt,
    set_end_of_turn,
)

pytestmark = pytest.mark.training

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PHI3 = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|close|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
LLAMA3 = (
    "{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
TEMPLATES = {
    "scratch": (scratch.CHAT_TEMPLATE, [], scratch.END),
    "chatml": (CHATML, ["<|im_start|>", "<|im_end|>"], "<|im_end|>"),
    "phi3": (PHI3, ["<|close|>"], "<|close|>"),
    "llama3": (LLAMA3, ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"], "<|eot_id|>"),
}
ROWS = sample("train", [3, 4], 40, 1)
MESSAGES = [message(row.premise, row.hypothesis, "paper") for row in ROWS]
COMPLETIONS = [worked(row.premise, row.hypothesis, "full") for row in ROWS]
FP32 = {"scratch": {}, "precision": "fp32"}


def settings(architecture: str = "qwen2") -> ScratchModel:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    return ScratchModel.model_validate({"architecture": architecture, "num_key_value_heads": 2, **sizes})


@pytest.fixture(scope="module", params=["qwen2", "phi3"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved scratch model."""
    folder = tmp_path_factory.mktemp(str(request.param))
    scratch.save_scratch(settings(request.param), [*MESSAGES, *COMPLETIONS], folder, seed=1)
    return folder


@pytest.fixture(params=list(TEMPLATES))
def templated(request: pytest.FixtureRequest) -> tuple[Any, str]:
    """A tokenizer with the chat template of a family, and the token with which its answers end."""
    template, tokens, end = TEMPLATES[request.param]
    tokenizer = scratch.train_tokenizer(settings(), [*MESSAGES, *COMPLETIONS])
    tokenizer.add_special_tokens({"additional_special_tokens": tokens})
    tokenizer.chat_template = template
    return tokenizer, end


@pytest.mark.parametrize(
    ("global_batch", "world_size", "largest", "micro", "accumulation"),
    [(16, 1, 16, 16, 1), (16, 1, 8, 8, 2), (16, 2, 8, 8, 1), (16, 2, 3, 2, 4), (12, 1, 8, 6, 2), (7, 1, 4, 1, 7),
     (4, 4, 8, 1, 1), (6, 2, 8, 3, 1)],
)  # fmt: skip
def test_a_global_batch_is_split(
    global_batch: int, world_size: int, largest: int, micro: int, accumulation: int
) -> None:
    assert derive(global_batch, world_size, largest) == Batch(micro, accumulation)


def test_a_batch_that_does_not_divide_is_refused_with_both_numbers() -> None:
    with pytest.raises(UserError, match=r"global_batch_size 16 does not divide.*: 3 in sft -> use 15 "):
        derive(16, 3, 8, "sft")
    with pytest.raises(UserError, match=r"global_batch_size 2 .*: 4 -> use 4 "):
        derive(2, 4, 8)


def test_loss_covers_the_completion_and_its_end_alone(templated: tuple[Any, str]) -> None:
    tokenizer, end = templated
    ending = end_of_turn(tokenizer)
    assert ending == tokenizer.convert_tokens_to_ids(end)
    prompts = [render_prompt(tokenizer, text) for text in MESSAGES]
    encoded = pa.concat_tables(encode(tokenizer, prompts, COMPLETIONS, ending))
    columns = (encoded[name].to_pylist() for name in ("input_ids", "labels"))
    for prompt, completion, ids, labels in zip(prompts, COMPLETIONS, *columns, strict=True):
        learned = [token for token in labels if token != IGNORED]
        assert tokenizer.decode(learned) == completion + end
        assert ids[len(ids) - len(learned) :] == learned
        inference = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        assert ids[: len(ids) - len(learned)] == inference
        assert labels == [IGNORED] * len(inference) + learned


def test_a_prompt_is_closed_and_the_rendered_conversation_begins_with_it(templated: tuple[Any, str]) -> None:
    tokenizer, end = templated
    prompt = render_prompt(tokenizer, MESSAGES[0])
    said = [{"role": "user", "content": MESSAGES[0]}, {"role": "assistant", "content": COMPLETIONS[0]}]
    assert tokenizer.apply_chat_template(said, tokenize=False).startswith(prompt + COMPLETIONS[0] + end)


def test_rows_above_the_limit_are_refused() -> None:
    rows = np.array([5, 9, 7])
    check_lengths(rows, 9, "sft.max_length")
    check_lengths(rows, None, "sft.max_length")
    with pytest.raises(UserError, match=r"2 of 3 rows are longer than the limit of 6 .*: 9 in sft\.max_length"):
        check_lengths(rows, 6, "sft.max_length")


def test_a_saved_tokenizer_gives_the_same_tokens(base: Path) -> None:
    before = scratch.train_tokenizer(settings(), [*MESSAGES, *COMPLETIONS])
    after = load_tokenizer(base)
    texts = [*(render_prompt(before, text) for text in MESSAGES), *COMPLETIONS]
    assert after(texts)["input_ids"] == before(texts)["input_ids"]
    assert [after.decode(ids) for ids in after(texts)["input_ids"]] == texts
    assert (after.padding_side, after.pad_token, after.eos_token) == ("left", scratch.PAD, scratch.END)
    assert after.chat_template == before.chat_template
    assert end_of_turn(after) == after.eos_token_id


def test_a_statement_is_one_token(base: Path) -> None:
    tokenizer = load_tokenizer(base)
    for row in ROWS:
        statements = row.premise.partition("as follows:")[2].replace(" However,", "").split(".")[:-1]
        tokens = [tokenizer.decode([token]) for token in tokenizer(row.premise)["input_ids"]]
        ends = [each for each in tokens if each.endswith(".")]
        assert ends[1:] == [f"{each}." for each in statements], "the first sentence lists the variables"


def test_a_tokenizer_without_chat_template_is_refused(base: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(base)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"has no chat template.*model\.base"):
        load_tokenizer(tmp_path)


def with_lora(**lora: Any) -> Model:
    return Model.model_validate({**FP32, "lora": Lora(**lora)})


FUSED = {"qwen2": ["q_proj", "v_proj"], "phi3": ["qkv_proj", "gate_up_proj"]}


@pytest.mark.parametrize("all_linear", [True, False])
def test_lora_trains_adapters_only_in_float32(base: Path, all_linear: bool) -> None:
    import torch

    names = next(names for family, names in FUSED.items() if base.name.startswith(family))
    model = load_for_training(str(base), with_lora(target_modules="all-linear" if all_linear else names))
    trained = [(name, each) for name, each in model.named_parameters() if each.requires_grad]
    assert all("lora_" in name and each.dtype == torch.float32 for name, each in trained)
    modules = {name.split(".lora_")[0].rpartition(".")[2] for name, _ in trained}
    assert modules > set(names) if all_linear else modules == set(names)


def test_lora_that_matches_nothing_is_refused(base: Path) -> None:
    with pytest.raises(UserError, match=r"LoRA matches no module.*'no_such'.*in model\.lora\.target_modules"):
        load_for_training(str(base), with_lora(target_modules=["no_such"]))


def test_a_saved_adapter_is_the_model_that_was_trained(base: Path, tmp_path: Path) -> None:
    import torch

    model = load_for_training(str(base), with_lora()).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(0), std=0.1)
    tokenizer = load_tokenizer(base)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    ids = tokenizer(MESSAGES[:1], return_tensors="pt")["input_ids"]
    loaded, again = load_for_inference(tmp_path, with_lora())
    plain, _ = load_for_inference(base, Model.model_validate(FP32))
    continued = load_for_training(str(tmp_path), with_lora()).eval()
    with torch.no_grad():
        wanted = model(ids).logits
        assert torch.equal(loaded(ids).logits, wanted)
        assert torch.equal(continued(ids).logits, wanted)
        assert not torch.allclose(plain(ids).logits, wanted)
    assert again(MESSAGES)["input_ids"] == tokenizer(MESSAGES)["input_ids"]
    assert any(each.requires_grad for each in continued.parameters())
    assert not loaded.training


def test_batched_generation_is_that_of_one_at_a_time(base: Path) -> None:
    model, tokenizer = load_for_inference(base, Model.model_validate(FP32))
    prompts = [render_prompt(tokenizer, text) for text in (*MESSAGES[:5], "A.", "A correlates with B.")]
    asked: dict[str, Any] = {"max_new_tokens": 8, "temperature": 0.0, "seed": 1}
    model.train()
    batched = complete(model, tokenizer, prompts, batch_size=3, **asked)
    assert model.training
    alone = [complete(model, tokenizer, [each], batch_size=1, **asked)[0] for each in prompts]
    assert batched == alone
    assert len({each.text for each in batched}) > 1
    backwards = complete(model, tokenizer, prompts[::-1], batch_size=3, **asked)
    assert backwards == batched[::-1]


def test_generation_is_the_argmax_and_ends_at_the_end_of_turn(base: Path) -> None:
    import torch

    model, tokenizer = load_for_inference(base, Model.model_validate(FP32))
    prompt = render_prompt(tokenizer, MESSAGES[0])
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        for _ in range(4):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
    written = ids[0, -4:].tolist()
    asked: dict[str, Any] = {"max_new_tokens": 4, "batch_size": 1, "temperature": 0.0, "seed": 1}
    made = complete(model, tokenizer, [prompt], **asked)[0]
    assert (made.text, made.tokens, made.ended) == (tokenizer.decode(written, skip_special_tokens=True), 4, False)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, written[0]]
    made = complete(model, tokenizer, [prompt], **asked)[0]
    assert (made.text, made.tokens, made.ended) == ("", 1, True)


def test_sampling_repeats_for_equal_seeds_and_leaves_the_random_state(base: Path) -> None:
    import torch

    model, tokenizer = load_for_inference(base, Model.model_validate(FP32))
    state = torch.get_rng_state()
    first, again, other = (
        complete(model, tokenizer, MESSAGES[:3], max_new_tokens=6, batch_size=3, temperature=1.0, seed=seed)
        for seed in (1, 1, 2)
    )
    assert first == again != other
    assert torch.equal(torch.get_rng_state(), state)


def test_both_ends_are_taken_for_an_end(base: Path) -> None:
    model, tokenizer = load_for_inference(base, Model.model_validate(FP32))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|eot_id|>"]})
    tokenizer.chat_template = LLAMA3
    set_end_of_turn(model, tokenizer)
    wanted = {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|eot_id|>")}
    assert set(model.generation_config.eos_token_id) == wanted
    assert len(wanted) == 2


@pytest.mark.parametrize(
    ("logs", "told"),
    [
        ({}, []),
        ({"loss": 0.5, "grad_norm": 1.0, "kl": 0.5, "share_yes": 0.5}, []),
        ({"loss": float("nan")}, ["loss is not finite"]),
        ({"loss": 1.0, "grad_norm": float("inf")}, ["grad_norm is not finite"]),
        ({"grad_norm": 0.0}, ["the gradient is zero"]),
        ({"kl": 1.5}, ["KL is above health.kl_max 1.0"]),
        ({"kl": 1.0}, []),
        ({"kl": None}, []),
        ({"share_yes": 1.0}, ["answers are one-sided: nearly all Yes"]),
        ({"share_no": 0.99, "unparsable": 0.01}, ["answers are one-sided: nearly all No"]),
        ({"share_yes": 0.0, "share_no": 0.0, "unparsable": 1.0}, ["answers can hardly ever be parsed"]),
        ({"dev_share_no": 1.0}, ["answers on dev rows are one-sided: nearly all No"]),
        ({"dev_unparsable": 0.99}, ["answers on dev rows can hardly ever be parsed"]),
        ({"share_yes": 0.97, "share_no": 0.03, "dev_share_yes": 0.0}, []),
        ({"loss": float("inf"), "grad_norm": 0, "share_no": 1}, ["loss is", "the gradient", "answers are one-sided"]),
    ],
)
def test_health_warnings(logs: dict[str, Any], told: list[str]) -> None:
    found = health_warnings(logs, Health())
    assert len(found) == len(told)
    assert all(one.startswith(begin) for one, begin in zip(found, told, strict=True))


def test_the_limits_of_health_are_the_recipes() -> None:
    assert health_warnings({"kl": 1.5, "share_yes": 0.99}, Health(kl_max=2, one_sided_share=1.0)) == []


def resources(**changes: Any) -> Resources:
    return Resources.model_validate(changes)


@pytest.mark.parametrize(
    ("launcher", "starter"),
    [
        ("none", "-m"),
        ("torchrun", "-m torch.distributed.run --standalone --nproc-per-node=2 -m"),
        (
            "accelerate",
            "-m accelerate.commands.launch --multi_gpu --num_processes=2 --num_machines=1 --mixed_precision=no "
            "--dynamo_backend=no --main_process_port=0 -m",
        ),
        ("deepspeed", "-m torch.distributed.run --standalone --nproc-per-node=2 -m"),
    ],
)
def test_each_launcher_starts_the_stage_module(launcher: str, starter: str) -> None:
    stage = Stage("sft2", "sft", (), {}, (), "")
    more = {"deepspeed": "zero2.json"} if launcher == "deepspeed" else {}
    command = launch_command(stage, Path("/a b/logs/x"), resources(launcher=launcher, **more), 2)
    assert command == [sys.executable, *starter.split(), "pipeline.stages.sft", "/a b/logs/x", "sft2"]


def test_one_accelerate_process_is_no_multi_gpu() -> None:
    command = launch_command(Stage("sft", "sft", (), {}, (), ""), Path("x"), resources(launcher="accelerate"), 1)
    assert "--multi_gpu" not in command


@pytest.mark.parametrize(
    ("settings", "gpus", "count"),
    [
        ({"launcher": "none", "gpus": 1}, 8, 1),
        ({"launcher": "torchrun"}, 0, 1),
        ({"launcher": "torchrun", "processes": 3}, 0, 3),
        ({"launcher": "torchrun", "gpus": 4}, 4, 4),
        ({"launcher": "torchrun", "gpus": 2}, 4, 2),
        ({"launcher": "torchrun", "gpus": 4}, 2, 2),
        ({"launcher": "torchrun", "gpus": 4}, 0, 1),
        ({"launcher": "torchrun", "gpus": 4, "processes": 2}, 4, 2),
    ],
)
def test_processes(settings: dict[str, Any], gpus: int, count: int) -> None:
    assert processes(resources(**settings), gpus) == count


def test_gpus_are_those_that_the_job_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,2,5")
    monkeypatch.delenv("SLURM_GPUS_ON_NODE", raising=False)
    assert gpus_at_hand() == 3
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpus_at_hand() == 0
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "2")
    assert gpus_at_hand() == 2


def launch_arguments(run: RunDir, stage: str) -> dict[str, Any]:
    """How the job body starts a stage, on CPU and with one thread."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    args = [sys.executable, "-m", "pipeline.training.launch", str(run.logs), stage]
    return {"args": args, "env": env, "cwd": HOME, "text": True}


def launch(run: RunDir, stage: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(**launch_arguments(run, stage), capture_output=True, timeout=240, check=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run of configs/smoke.yaml whose sft stage was trained by two processes."""
    run = RunDir(tmp_path_factory.mktemp("run 'of two"), "r")
    tree = read_yaml(HOME / "configs" / "smoke.yaml")
    tree["resources"]["sft"] |= {"launcher": "torchrun", "processes": 2}
    run.write_resolved(build_recipe("smoke", tree, "smoke.yaml"), {})
    for stage in ("preprocess", "sft"):
        ended = launch(run, stage)
        assert ended.returncode == 0, ended.stdout + ended.stderr
    return run


def test_two_processes_train_one_model(trained: RunDir) -> None:
    assert trained.done("preprocess") and trained.done("sft")
    state = trained.state("sft")
    assert (state["state"], state["exit_code"], state["attempt"]) == ("done", 0, 1)
    assert trained.attempt_log("sft", 1, rank=1).exists()
    assert "step 4/4" in trained.latest_log("sft").read_text()
    steps = [line["step"] for line in trained.read_metrics("sft") if "train_loss" in line]
    assert steps == [4]
    before, _ = load_for_inference(trained.model("base"), Model.model_validate(FP32))
    after, _ = load_for_inference(trained.model("sft"), Model.model_validate(FP32))
    pairs = zip(before.parameters(), after.parameters(), strict=True)
    assert any(not one.equal(other) for one, other in pairs)


def test_a_stage_that_is_done_is_not_run_again(trained: RunDir) -> None:
    marker = trained.done("sft")
    ended = launch(trained, "sft")
    assert (ended.returncode, ended.stdout.strip()) == (0, "sft is done already")
    assert trained.done("sft") == marker
    assert trained.state("sft")["attempt"] == 1


def test_a_model_file_that_is_gone_is_named(trained: RunDir) -> None:
    path = trained.model("sft") / "model.safetensors"
    aside = path.rename(trained.root / "aside")
    ended = launch(trained, "grpo")
    aside.rename(path)
    assert ended.returncode == 3
    lines = [line for line in ended.stderr.splitlines() if "models/r_sft_model/model.safetensors is missing" in line]
    assert len(lines) == 1 and lines[0].startswith("error: grpo needs sft")
    assert "Traceback" not in ended.stdout + ended.stderr
    state = trained.state("grpo")
    assert (state["state"], state["exit_code"]) == ("failed", 3)
    assert "run sft again" in state["reason"]


def test_a_stop_signal_is_recorded_and_ends_every_process(trained: RunDir) -> None:
    body = subprocess.Popen(
        **launch_arguments(trained, "grpo"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=1
    )
    assert body.stdout is not None
    first = body.stdout.readline()
    assert first.startswith("stage grpo of run r, attempt")
    child = wait_for_child(body)
    body.send_signal(signal.SIGTERM)
    body.communicate(timeout=60)
    assert body.returncode == 130
    state = trained.state("grpo")
    assert (state["state"], state["exit_code"]) == ("interrupted", 130)
    assert state["reason"].startswith("stopped by SIGTERM")
    assert trained.done("grpo") is None
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def wait_for_child(body: subprocess.Popen[str]) -> int:
    """The process of the stage, once the job body has started it and handles SIGTERM."""
    children, status = (Path(f"/proc/{body.pid}") / name for name in (f"task/{body.pid}/children", "status"))
    while True:
        assert body.poll() is None
        found = children.read_text().split()
        handled = int(status.read_text().partition("SigCgt:")[2].split()[0], 16)
        if found and handled >> (signal.SIGTERM - 1) & 1:
            return int(found[0])
        time.sleep(0.02)
