"""The contrastive objective: tokens and cuts, one batched pass with the gradients of the naive three, whatever cuts
the batch up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from contrastive_step import step

from pipeline.errors import UserError
from pipeline.recipe import Lora, Model, ScratchModel, Tokenizer
from pipeline.recipe_contrastive import PARTS, GeneratedTriplets, Loss, Representation
from pipeline.run import HOME
from pipeline.tasks.injection import Triplet
from pipeline.tasks.injection_generate import generate

pytestmark = pytest.mark.training

ROWS = generate(GeneratedTriplets(train=8, dev=4, test=4), [], 3)["train"]
TEXTS = [text for row in ROWS for text in (row.system_instruction, *map(row.user, PARTS), row.expected_output_1)]
SMALL = ScratchModel(
    architecture="llama", hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=2, initializer_range=0.2, tokenizer=Tokenizer(vocab_size=400, split="word"),
)  # fmt: skip
LEARNED: dict[str, Any] = {"lambda_causal": 0.7, "lambda_spurious": 0.4, "lambda_task": 0.9,
                           "task_inputs": ["benign", "injection"]}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A saved model with random weights, its tokenizer, and eight triplets as tokens."""
    from datasets import Dataset

    from pipeline.training.contrastive_data import TripletEncoder, write_triplet_tokens
    from pipeline.training.models import load_tokenizer
    from pipeline.training.scratch import save_scratch

    folder = tmp_path_factory.mktemp("contrastive")
    save_scratch(SMALL, TEXTS, folder / "model", 5)
    tokenizer = load_tokenizer(folder / "model")
    encoder = TripletEncoder(tokenizer, 200)
    statistics = write_triplet_tokens(folder / "rows.arrow", ROWS, encoder)
    rows = Dataset.from_file(str(folder / "rows.arrow"))
    return SimpleNamespace(folder=folder, tokenizer=tokenizer, encoder=encoder, statistics=statistics, rows=rows)


def load(made: SimpleNamespace) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(made.folder / "model")


def gradients(model: Any) -> dict[str, Any]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def naive(model: Any, rows: Any, loss: Loss, shape: Representation) -> dict[str, Any]:
    """Gradients of the formulas of the loss, written out: each text alone through the model, without any padding."""
    import torch

    model.zero_grad()
    vectors: dict[str, list[Any]] = {part: [] for part in PARTS}
    tasks = []
    for row in rows:
        entropies = []
        for part in PARTS:
            prompt, output = row[f"{part}_prompt"], row[f"{part}_output"] if part in loss.task_inputs else []
            found = model(torch.tensor([prompt + output]), output_hidden_states=True)
            states = found.hidden_states[shape.layer][0, : len(prompt)]
            vectors[part].append(states[-1] if shape.pooling == "last" else states.mean(0))
            if output:
                logits = found.logits[0, len(prompt) - 1 : -1]
                entropies.append(-logits.log_softmax(-1)[range(len(output)), output].mean())
        tasks.append(sum(entropies) / len(entropies))
    b, c, i = (torch.stack(vectors[part]) for part in PARTS)
    b, c, i = (each / each.norm(dim=1, keepdim=True) for each in (b, c, i))
    if loss.type == "info_nce":
        own = (b * c).sum(1).div(loss.temperature).exp()
        everybody = (b @ c.T / loss.temperature).exp().sum(1)
        attacks = (b @ i.T / loss.temperature).exp().sum(1)
        causal, spurious = -(own / everybody).log().mean(), -(own / (own + attacks)).log().mean()
    else:
        causal, spurious = -(b * c).sum(1).mean() / loss.temperature, (b * i).sum(1).mean() / loss.temperature
    total = loss.lambda_causal * causal + loss.lambda_spurious * spurious + loss.lambda_task * sum(tasks) / len(tasks)
    total.backward()
    return gradients(model)


def assert_equal(found: dict[str, Any], wanted: dict[str, Any], tolerance: float = 2e-5) -> None:
    import torch

    assert found.keys() == wanted.keys() and found
    scale = max(float(each.abs().max()) for each in wanted.values())
    for name, each in wanted.items():
        torch.testing.assert_close(found[name], each, rtol=0, atol=tolerance * scale, msg=lambda m, n=name: f"{n}: {m}")


def test_tokens_are_those_of_the_chat_template(made: SimpleNamespace) -> None:
    row, ids = ROWS[0], made.rows[0]
    text = made.tokenizer.apply_chat_template(
        [{"role": "system", "content": row.system_instruction}, {"role": "user", "content": row.user_input_injection}],
        tokenize=False, add_generation_prompt=True,
    )  # fmt: skip
    assert made.tokenizer.decode(ids["injection_prompt"]) == text
    assert made.tokenizer.decode(ids["benign_output"][:-1]) == row.expected_output_1
    assert ids["benign_output"][-1] == made.tokenizer.eos_token_id
    lengths = [len(each["injection_prompt"]) for each in made.rows]
    assert made.statistics["tokens"]["injection_prompt"]["most"] == max(lengths)
    assert made.statistics["cut"] == dict.fromkeys(PARTS, 0)


def test_a_template_without_a_system_role_gets_the_instruction_in_the_users_text(made: SimpleNamespace) -> None:
    from copy import deepcopy

    from pipeline.training.contrastive_data import TripletEncoder

    tokenizer = deepcopy(made.tokenizer)
    refuses = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}"
    tokenizer.chat_template = refuses + "{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
    assert TripletEncoder(tokenizer, 100).render("Be good.", "Hello") == "[Be good.\n\nHello]"


def test_cuts_take_the_context_first_then_the_user_and_never_the_instruction(made: SimpleNamespace) -> None:
    from pipeline.training.contrastive_data import CUT, TripletEncoder

    words = " ".join(["stone"] * 60)
    row = ROWS[0].model_copy(update={"context": f"first {words} last"})
    whole = len(made.encoder.encode(row, "injection").prompt) + len(made.encoder.encode(row, "injection").output)
    for limit in (whole - 1, whole - 40):
        encoder = TripletEncoder(made.tokenizer, limit)
        prompt, cut = encoder.prompt(row, "injection")
        assert cut and len(encoder.encode(row, "injection").prompt) <= limit
        assert row.system_instruction in prompt and row.user_input_injection in prompt
        assert "first stone" in prompt and "stone last" in prompt and prompt.count(CUT.strip()) == 1
    bare = len(made.encoder.encode(ROWS[0], "benign").prompt) + len(made.encoder.encode(ROWS[0], "benign").output)
    prompt, cut = TripletEncoder(made.tokenizer, bare - 2).prompt(ROWS[0], "benign")
    assert cut and ROWS[0].system_instruction in prompt and ROWS[0].user_input_benign_1 not in prompt
    with pytest.raises(UserError, match=r"triplets\.max_length"):
        TripletEncoder(made.tokenizer, 12).prompt(ROWS[0], "benign")


@pytest.mark.parametrize("forward", ["batched", "separate"])
@pytest.mark.parametrize(
    ("shape", "checkpointing"),
    [
        (Representation(), False),
        (Representation(), True),
        (Representation(pooling="mean", layer=1), False),
        (Representation(pooling="mean", layer=1), True),
        (Representation(layer=0), False),
    ],
    ids=str,
)
def test_a_batched_pass_has_the_gradients_of_the_naive_three(
    made: SimpleNamespace, forward: str, shape: Representation, checkpointing: bool
) -> None:
    settings = {"loss": LEARNED, "forward": forward, "representation": shape.model_dump()}
    wanted = naive(load(made), made.rows, Loss(**LEARNED), shape)
    assert_equal(stepped(made, settings, 8, 1, checkpointing), wanted)


def stepped(made: SimpleNamespace, settings: dict[str, Any], micro: int, accumulation: int, checkpointing: bool) -> Any:
    """The gradient by which the real trainer moved the weights."""
    model = load(made)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    step(model, made.rows, settings, micro, accumulation, checkpointing)
    return {name: before[name] - p.detach() for name, p in model.named_parameters()}


@pytest.mark.parametrize("kind", ["causal_contrastive", "info_nce"])
@pytest.mark.parametrize(("micro", "accumulation"), [(1, 8), (2, 4), (3, 3)])
def test_accumulation_changes_nothing(made: SimpleNamespace, kind: str, micro: int, accumulation: int) -> None:
    loss = {**LEARNED, "type": kind}
    wanted = naive(load(made), made.rows, Loss(**loss), Representation())
    assert_equal(stepped(made, {"loss": loss}, micro, accumulation, False), wanted)


@pytest.mark.parametrize("kind", [pytest.param("causal_contrastive", marks=pytest.mark.long), "info_nce"])
def test_two_processes_change_nothing(made: SimpleNamespace, kind: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    loss = {**LEARNED, "type": kind}
    wanted = naive(load(made), made.rows, Loss(**loss), Representation())
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
         str(Path(__file__).parent / "contrastive_step.py"), str(made.folder / "model"),
         str(made.folder / "rows.arrow"), json.dumps({"loss": loss}), str(tmp_path / "weights.safetensors")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(HOME)},
        cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    before = dict(load(made).named_parameters())
    after = load_file(tmp_path / "weights.safetensors")
    assert_equal({name: before[name].detach() - each for name, each in after.items()}, wanted)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_four_bit_weights_change_nothing(made: SimpleNamespace, checkpointing: bool) -> None:
    from pipeline.recipe_contrastive import Contrastive
    from pipeline.stages.contrastive import prepared
    from pipeline.training.contrastive import Objective, passed
    from pipeline.training.contrastive_trainer import TripletCollator
    from pipeline.training.models import load_for_training

    settings = Model(base=str(made.folder / "model"), precision="fp32", quantization="nf4", lora=Lora(r=4, dropout=0.0))
    model = prepared(load_for_training(str(settings.base), settings))
    assert any("4bit" in type(module).__name__.lower() for module in model.modules())
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(generator=generator(1))  # they begin as 0, where half of the gradients are 0 too
    wanted = naive(model, made.rows, Loss(**LEARNED), Representation())
    model.zero_grad()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    own = Contrastive.model_validate({"global_batch_size": 8, "loss": LEARNED})
    found = passed(model, TripletCollator(own, 0, PARTS)(list(made.rows))["passes"], own.representation)
    (Objective(own.loss).contrast(found.representations)[0] + own.loss.lambda_task * found.task.mean()).backward()
    assert_equal(gradients(model), wanted, 1e-3)


def generator(seed: int) -> Any:
    import torch

    return torch.Generator().manual_seed(seed)


def test_a_control_needs_only_the_parts_that_it_learns(made: SimpleNamespace) -> None:
    from pipeline.recipe_contrastive import Contrastive
    from pipeline.training.contrastive import trained_parts

    control = {"lambda_causal": 0.0, "lambda_spurious": 0.0}
    own = Contrastive.model_validate({"global_batch_size": 8, "loss": control})
    assert trained_parts(own) == ("benign",)
    wanted = naive(load(made), made.rows, own.loss, own.representation)
    assert_equal(stepped(made, {"loss": control}, 8, 1, False), wanted)


def test_dropout_is_the_same_in_both_passes_of_info_nce(made: SimpleNamespace) -> None:
    import torch

    from pipeline.training.contrastive import passed

    model = load(made)
    for layer in model.model.layers:
        layer.mlp.register_forward_hook(lambda module, _, output: torch.dropout(output, 0.5, module.training))
    trainer = step(model, made.rows, {"loss": {**LEARNED, "type": "info_nce"}}, 8, 1, False)
    batches, _ = trainer.get_batch_samples(iter([trainer.data_collator(list(made.rows))]), 1, "cpu")
    before = torch.random.get_rng_state()
    with trainer._dropout_of(batches[0]):
        again = passed(trainer.model, batches[0]["passes"], Representation()).representations
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(again[part], batches[0]["everybody"][part]) for part in PARTS)
    other = passed(trainer.model, batches[0]["passes"], Representation()).representations
    assert not torch.equal(other["benign"], again["benign"])


class NormGap:
    """A loss of the user's own."""

    def __call__(self, benign: Any, counterfactual: Any, injection: Any) -> dict[str, Any]:
        gap = (benign - counterfactual).norm(dim=1) - (benign - injection).norm(dim=1)
        return {"loss": gap.mean(), "gap": gap.mean()}


def test_a_loss_by_import_path(made: SimpleNamespace) -> None:
    import torch

    from pipeline.training.contrastive import Objective

    sys.modules.setdefault("own_losses", SimpleNamespace(NormGap=NormGap))  # type: ignore[arg-type]
    rows: dict[str, Any] = {part: torch.randn(4, 3, generator=generator(i)) for i, part in enumerate(PARTS)}
    loss, parts = Objective(Loss(type="own_losses:NormGap")).contrast(rows)
    assert loss == NormGap()(*(rows[part] for part in PARTS))["loss"] and set(parts) == {"gap"}
    for wrong in ("own_losses:Absent", "no_such_module:Loss"):
        with pytest.raises(UserError, match=r"loss\.type"):
            Objective(Loss(type=wrong))


def test_a_layer_that_is_not_there_is_refused(made: SimpleNamespace) -> None:
    with pytest.raises(UserError, match=r"use -3 to 2"):
        stepped(made, {"representation": {"layer": 3}}, 8, 1, False)


def test_a_row_without_a_safe_output_adds_nothing_to_the_task_loss(made: SimpleNamespace) -> None:
    from pipeline.recipe_contrastive import Contrastive
    from pipeline.training.contrastive import passed
    from pipeline.training.contrastive_trainer import TripletCollator

    bare = Triplet.model_validate({**ROWS[0].model_dump(), "expected_output_injection": None})
    row = {f"{part}_{name}": getattr(made.encoder.encode(bare, part), name) for part in PARTS for name in
           ("prompt", "output")}  # fmt: skip
    both, benign = (
        Contrastive.model_validate({"global_batch_size": 1, "loss": {"task_inputs": inputs}})
        for inputs in (["benign", "injection"], ["benign"])
    )
    found = [passed(load(made), TripletCollator(own, 0, PARTS)([row])["passes"], Representation()).task
             for own in (both, benign)]  # fmt: skip
    assert found[0].item() == pytest.approx(found[1].item(), rel=1e-6)
