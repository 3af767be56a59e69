"""PPO's mathematics against sums written out, its gradients against the formulas, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import PipelineError
from pipeline.load import build_recipe
from pipeline.recipe_rl import Ppo
from pipeline.run import HOME
from pipeline.settings import merge, read_yaml
from pipeline.training.ppo import PpoTrainer, ValueHead, clipped_value_loss, gae, token_rewards


@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(1, 7), gamma=st.floats(0, 1), lam=st.floats(0, 1), seed=st.integers(0, 10**6),
    width=st.integers(0, 3),
)  # fmt: skip
def test_gae_is_the_sum_of_discounted_differences(length: int, gamma: float, lam: float, seed: int, width: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rewards, values = (torch.randn(1, length + width, generator=generator) for _ in range(2))
    mask = torch.cat([torch.ones(1, length), torch.zeros(1, width)], dim=1)
    found = gae(rewards * mask, values, mask, gamma, lam)
    v, r = [*values[0, :length].tolist(), 0.0], rewards[0].tolist()
    delta = [r[t] + gamma * v[t + 1] - v[t] for t in range(length)]
    wanted = [sum((gamma * lam) ** (k - t) * delta[k] for k in range(t, length)) for t in range(length)]
    torch.testing.assert_close(found[0, :length], torch.tensor(wanted), atol=1e-4, rtol=1e-4)
    assert not found[0, length:].any()


def test_gae_at_its_ends_is_the_return_and_one_step() -> None:
    rewards, values, mask = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.2, 0.5, 0.7]]), torch.ones(1, 3)
    torch.testing.assert_close(gae(rewards, values, mask, 1.0, 1.0) + values, torch.ones(1, 3))
    torch.testing.assert_close(gae(rewards, values, mask, 1.0, 0.0), torch.tensor([[0.3, 0.2, 0.3]]))


def test_the_score_is_paid_at_the_last_token_and_straying_costs_at_each() -> None:
    mask = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    log_ratio = torch.tensor([[0.5, -1.0, 9.0], [0.0, 2.0, 0.0], [9.0, 9.0, 9.0]])
    found = token_rewards(torch.tensor([1.0, -1.0, 5.0]), log_ratio, mask, 0.1)
    torch.testing.assert_close(found, torch.tensor([[-0.05, 1.1, 0.0], [0.0, -0.2, -1.0], [0.0, 0.0, 0.0]]))


def test_a_value_that_moved_too_far_towards_its_return_has_no_gradient() -> None:
    old, returns = torch.zeros(4), torch.tensor([1.0, 1.0, 1.0, -1.0])
    values = torch.tensor([0.1, 0.5, -0.5, 0.5], requires_grad=True)
    clipped_value_loss(values, old, returns, 0.2).sum().backward()
    # within the clip; beyond it towards the return (no gradient); beyond it away from the return (both times)
    torch.testing.assert_close(values.grad, torch.tensor([0.1 - 1, 0.0, -0.5 - 1, 0.5 + 1]))


def test_a_new_value_head_says_zero_and_learns_alike_for_states_of_any_size() -> None:
    head, states = ValueHead(8), torch.randn(2, 3, 8)
    assert head(states).shape == (2, 3) and not head(states).any()
    torch.nn.init.normal_(head.out.weight)
    torch.testing.assert_close(head(states), head(100 * states), atol=1e-3, rtol=1e-3)
    assert head(states.bfloat16()).dtype == torch.float32


def tree(**changes: Any) -> dict[str, Any]:
    return merge(read_yaml(HOME / "configs" / "tiny-math-ppo.yaml"), changes)


@pytest.mark.parametrize(
    ("ppo", "told"),
    [
        ({"beta": 0.1}, "use kl_coefficient in the same section"),
        ({"scale_rewards": "none"}, "this option has another place"),
        ({"loss_type": "sapo"}, "unknown loss_type: 'sapo'"),
        ({"importance_sampling_level": "sequence"}, "unknown importance_sampling_level"),
        ({"epsilonn": 0.1}, "did you mean 'epsilon'"),
        ({"kl_coeficient": 0.1}, "did you mean 'kl_coefficient'"),
        ({"gae_lambda": 1.5}, "ppo.gae_lambda"),
        ({"global_batch_size": 12}, "must divide by num_generations"),
        ({"rewards": {"correct_reward": 2.0}}, "ppo.rewards is not for the task"),
        ({"reward": {"type": "code_execution"}}, "cannot grade rows of arithmetic"),
    ],
)
def test_options_are_checked_before_anything_runs(ppo: dict[str, Any], told: str) -> None:
    with pytest.raises(PipelineError) as caught:
        build_recipe("t", tree(ppo=ppo), "t.yaml")
    assert told in str(caught.value)


@pytest.mark.training
def test_a_step_is_the_formulas_on_plain_logits(tmp_path: Path) -> None:
    """Rollout and loss of the real trainer, computed once more with nothing of TRL: a forward pass, sums, means."""
    trainer = real_trainer(tmp_path)
    trainer.model.train()
    torch.nn.init.normal_(trainer.model.value_head.out.weight, std=0.3)
    with torch.no_grad():
        trainer.ref_model.lm_head.weight.add_(0.1 * torch.randn_like(trainer.ref_model.lm_head.weight))
    inputs = trainer._prepare_inputs([{"prompt": QUESTION}] * 4)
    before, values = plain(trainer, trainer.model, inputs)
    reference, _ = plain(trainer, trainer.ref_model, inputs)
    mask = inputs["completion_mask"].float()
    scores = torch.tensor([float(len(trainer.processing_class.decode(ids))) for ids in cut(inputs)])
    rewards = token_rewards(scores, (before - reference) * mask, mask, KL)
    advantages = gae(rewards, values * mask, mask, 0.9, 0.8)
    spread = advantages[mask > 0]
    white = (advantages - spread.mean()) / spread.std(unbiased=False)
    torch.testing.assert_close(inputs["advantages"], white * mask, atol=1e-4, rtol=1e-3)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    trainer.current_gradient_accumulation_steps = 1  # as the training loop has it
    found = trainer._compute_loss(trainer.model, inputs)
    after, now = plain(trainer, trainer.model, inputs)
    ratio = (after - before).exp()
    policy = -torch.minimum(ratio * white, ratio.clamp(0.8, 1.2) * white)
    value = clipped_value_loss(now, values, advantages + values, 0.2)
    wanted = ((policy + value) * mask).sum() / mask.sum()
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-3)


QUESTION = [{"role": "user", "content": "2 + 2"}]
KL = 0.3


def real_trainer(folder: Path) -> Any:
    """PPO's trainer on a random model that was saved and loaded; a longer completion is a better one."""
    from datasets import Dataset
    from trl import GRPOConfig

    from pipeline.recipe import Model, ScratchModel
    from pipeline.training.models import load_for_training, load_tokenizer, set_end_of_turn
    from pipeline.training.scratch import save_scratch

    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    scratch = ScratchModel(**{**sizes, "num_key_value_heads": 2})  # type: ignore[arg-type]
    save_scratch(scratch, ["2 + 2 = 4"], folder / "model", seed=0)
    tokenizer = load_tokenizer(folder / "model")
    model = load_for_training(str(folder / "model"), Model(base=str(folder / "model"), precision="fp32"))
    set_end_of_turn(model, tokenizer)
    own = Ppo(global_batch_size=4, num_generations=4, kl_coefficient=KL, gamma=0.9, gae_lambda=0.8)  # fmt: skip
    args = GRPOConfig(
        output_dir=str(folder / "out"), use_cpu=True, bf16=False, per_device_train_batch_size=4, num_generations=4,
        gradient_accumulation_steps=1, max_completion_length=6, temperature=1.0, beta=KL, report_to="none",
        num_iterations=2, gradient_checkpointing=False,
    )  # fmt: skip

    def long(completions: Any, **_: Any) -> list[float]:
        return [float(len(each[-1]["content"])) for each in completions]

    return PpoTrainer(
        own, model=model, args=args, train_dataset=Dataset.from_list([{"prompt": QUESTION}] * 4), reward_funcs=[long],
        processing_class=tokenizer,
    )  # fmt: skip


def cut(inputs: Any) -> list[Any]:
    """The ids of each completion, without the end of turn."""
    rows = zip(inputs["completion_ids"], inputs["completion_mask"], strict=True)
    return [[t for t in ids[mask > 0].tolist() if t > 4] for ids, mask in rows]


def plain(trainer: Any, model: Any, inputs: Any) -> tuple[Any, Any]:
    """(log-probabilities, values) of the completion tokens, by one pass of the model itself; zeros for the reference's
    values."""
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    length = inputs["completion_ids"].shape[1]
    outputs = model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    logps = outputs.logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:].unsqueeze(2)).squeeze(2)[:, -length:]
    states = outputs.hidden_states[-1][:, -length - 1 : -1]
    head = getattr(model, "value_head", None)
    return logps, head(states) if head is not None else torch.zeros_like(logps)
