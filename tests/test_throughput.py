"""What a stage logs of its speed, and where it logs it."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.load import build_recipe
from pipeline.recipe import Model, Recipe, ScratchModel
from pipeline.run import HOME, RunDir
from pipeline.settings import merge, read_yaml
from pipeline.training.tracking import tracked_name

pytestmark = pytest.mark.training


def smoke(**changes: Any) -> Recipe:
    tree = merge(read_yaml(HOME / "configs" / "smoke.yaml"), {"stages": ["preprocess", "sft"], **changes})
    for name in ("grpo", "evaluate"):
        del tree[name], tree["resources"][name]
    del tree["data"]["rows"]["grpo"]
    return build_recipe("smoke", tree, "smoke.yaml")


def test_batches_are_counted_padded_or_in_one_row() -> None:
    import torch

    from pipeline.training.throughput import Counted

    padded = Counted()
    for lengths in ((3, 5), (4, 1)):
        mask = torch.tensor([[1] * length + [0] * (5 - length) for length in lengths])
        padded.add({"input_ids": torch.zeros(2, 5), "attention_mask": mask})
    assert (padded.rows, padded.tokens, int(padded.useful)) == (4, 20, 13)
    joined = Counted()
    joined.add({"input_ids": torch.zeros(1, 8), "position_ids": torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4]])})
    assert (joined.rows, joined.tokens, int(joined.useful)) == (2, 8, 8)
    joined.add({"inputs_embeds": torch.zeros(1, 8, 4)})
    assert joined.tokens == 8


def test_operations_of_frozen_weights_count_less(tmp_path: Path) -> None:
    from pipeline.training import scratch
    from pipeline.training.models import load_for_training
    from pipeline.training.throughput import flops_per_token

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    made = ScratchModel.model_validate({**sizes, "num_key_value_heads": 1})
    scratch.save_scratch(made, ["A correlates with B."], tmp_path, seed=1)
    plain = {"base": str(tmp_path), "precision": "fp32"}
    whole = load_for_training(str(tmp_path), Model.model_validate(plain))
    layer = 32 * (32 + 16 + 16 + 32) + 3 * 32 * 48
    head = 32 * whole.config.vocab_size
    assert flops_per_token(whole) == 6 * (2 * layer + head)
    adapted = load_for_training(str(tmp_path), Model.model_validate({**plain, "lora": {"r": 4}}))
    adapters = 4 * (32 * 8 + 32 + 16 + 16 + 32 + 3 * (32 + 48) - 32 * 4)
    assert flops_per_token(adapted) == 4 * (2 * layer + head) + 6 * 2 * adapters


def test_the_share_of_a_known_gpu_is_logged() -> None:
    import torch

    from pipeline.training.throughput import ThroughputCallback

    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    trainer = SimpleNamespace(
        model=model, accelerator=SimpleNamespace(unwrap_model=lambda it: it), _metrics={"train": defaultdict(list)}
    )
    for peak in (0.0, 2.0):
        callback = ThroughputCallback(trainer, peak)
        callback.on_train_begin(None, None, None)
        batch = {"input_ids": torch.zeros(2, 3), "attention_mask": torch.tensor([[1, 1, 0]] * 2)}
        callback._count(model, (), batch)
        with torch.no_grad():  # completions are sampled in training mode
            callback._count(model, (), batch)
        callback.on_step_end(SimpleNamespace(world_size=2), None, SimpleNamespace(should_log=False))
        callback.on_step_end(SimpleNamespace(world_size=2), None, SimpleNamespace(should_log=True))
        logged = {key: values[-1] for key, values in trainer._metrics["train"].items()}
        assert logged["tokens_per_second"] == pytest.approx(1.5 * logged["useful_tokens_per_second"])
        assert logged["samples_per_second"] == pytest.approx(logged["tokens_per_second"] / 3)
        assert logged["tflops"] == pytest.approx(logged["useful_tokens_per_second"] / 2 * 6 * 16 / 1e12)
        assert ("mfu" in logged) == bool(peak)
    assert logged["mfu"] == pytest.approx(logged["tflops"] / 2.0)


def test_names_and_modes_of_tracking(tmp_path: Path) -> None:
    run = RunDir(tmp_path, "r")
    assert tracked_name(smoke(), run, "sft") == "r-sft"
    assert tracked_name(smoke(tracking={"run_name": "mine"}), run, "sft") == "mine"
    two = read_yaml(HOME / "configs" / "smoke.yaml") | {"tracking": {"run_name": "mine", "mode": "disabled"}}
    recipe = build_recipe("smoke", two, "x")
    assert (tracked_name(recipe, run, "grpo"), recipe.tracking.mode) == ("mine-grpo", "disabled")
