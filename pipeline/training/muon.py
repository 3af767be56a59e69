"""Muon for the matrices inside the layers, AdamW for the rest, as one optimizer that a Trainer saves and resumes.

Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) makes the update of a matrix orthogonal. Embeddings, the
output layer, norms and biases are not for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim import Optimizer

from pipeline.errors import UserError
from pipeline.recipe import Muon

NOT_FOR_MUON = ("embed", "lm_head")


class Together(Optimizer):  # type: ignore[misc]
    """Several optimizers as one: each steps its own parameters, a scheduler sees all their groups."""

    def __init__(self, optimizers: Iterable[Optimizer]) -> None:
        self.parts = list(optimizers)
        super().__init__([group for part in self.parts for group in part.param_groups], {})

    def step(self, closure: Callable[[], float] | None = None) -> None:
        """One step of each."""
        assert closure is None, "no part may see the loss twice"
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """The states of all, in their order."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the states of all back; their groups are new objects then, which a scheduler must see."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]


def muon_with_adamw(model: torch.nn.Module, muon: Muon, arguments: Any) -> Together:
    """The optimizer for a model's trained parameters; `arguments` are the trainer's, which rule AdamW.

    Raises UserError when the model has no matrix for Muon, or the trainer shards its parameters.
    """
    if arguments.deepspeed or arguments.fsdp:
        raise UserError(
            "Muon needs whole matrices",
            value="deepspeed or fsdp",
            where="muon",
            do="leave `muon` out for this launcher",
        )
    trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
    inner = [each for name, each in trained.items() if each.ndim == 2 and not any(n in name for n in NOT_FOR_MUON)]
    if not inner:
        raise UserError("no matrix inside the model is trained", value="muon", where="muon", do="leave `muon` out")
    known = set(map(id, inner))
    rest = [each for each in trained.values() if id(each) not in known]
    adamw = torch.optim.AdamW(
        rest, lr=arguments.learning_rate, betas=(arguments.adam_beta1, arguments.adam_beta2),
        eps=arguments.adam_epsilon, weight_decay=arguments.weight_decay,
    )  # fmt: skip
    matrices = torch.optim.Muon(
        inner, lr=muon.learning_rate, momentum=muon.momentum, weight_decay=muon.weight_decay
    )  # fmt: skip
    return Together([matrices, adamw])
