"""TRL's fused loss scores labelled positions alone, on CPUs too, and is what it was."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytestmark = pytest.mark.training


def loss_and_gradients(batch: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> tuple[float, dict[str, Any], int]:
    """(loss, gradients by name, positions that went through the output layer) of a small random model."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM
    from trl.trainer import utils

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=40, num_key_value_heads=1, **sizes))
    utils.add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    scored: list[int] = []
    function = utils._ChunkedLogProbFunction

    def apply(hidden: Any, *rest: Any) -> Any:
        scored.append(len(hidden))
        return function.apply(hidden, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(utils, "_ChunkedLogProbFunction", SimpleNamespace(apply=apply))
        made = model(**batch, fused_lm_head=True)
    made.loss.backward()
    return made.loss.item(), {name: each.grad for name, each in model.named_parameters()}, sum(scored)


def test_prompts_do_not_go_through_the_output_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from trl.trainer import utils

    from pipeline.training.labelled import score_labelled_positions

    monkeypatch.setattr(utils, "_use_triton", utils._use_triton)  # as it was, afterwards
    ids = torch.randint(40, (3, 12), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[:, :7] = -100
    labels[2, 10:] = -100
    batch = {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)}
    plain, gradients, everywhere = loss_and_gradients(batch, monkeypatch)
    score_labelled_positions()
    loss, same, labelled = loss_and_gradients(batch, monkeypatch)
    assert (everywhere, labelled) == (3 * 11, 5 + 5 + 3)
    assert loss == pytest.approx(plain, rel=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(same[name], gradient, rtol=1e-4, atol=1e-7)


def test_a_batch_without_labels_has_no_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from trl.trainer import utils

    from pipeline.training.labelled import score_labelled_positions

    monkeypatch.setattr(utils, "_use_triton", utils._use_triton)
    score_labelled_positions()
    ids = torch.ones(1, 4, dtype=torch.long)
    batch = {"input_ids": ids, "labels": torch.full_like(ids, -100), "attention_mask": ids}
    loss, gradients, scored = loss_and_gradients(batch, monkeypatch)
    assert (loss, scored) == (0.0, 0)
    assert not any(each.any() for each in gradients.values() if each is not None)
