"""The causal contrastive objective: one batched pass over triplets, pooled representations, losses, their sum."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy, normalize

from pipeline.errors import UserError
from pipeline.recipe_contrastive import LOSSES, PARTS, Contrastive, Loss, Representation
from pipeline.training.encode import IGNORED


@dataclass(frozen=True)
class Passed:
    """What a pass over B triplets gives."""

    representations: dict[str, Tensor]
    """Part -> shape (B, hidden size), float32."""
    task: Tensor
    """Mean cross entropy of the output tokens of each triplet's learned parts, shape (B,); 0 where there is none."""


def passed(model: Any, passes: Sequence[Mapping[str, Any]], settings: Representation) -> Passed:
    """Run the model over batches of `contrastive_data.collate`, each with the key `parts`, one pass a batch.

    Logits are made of the output columns alone. A prompt's hidden states do not see its output (causal attention), so
    one pass serves the representation and the task loss.
    """
    representations: dict[str, Tensor] = {}
    losses, counted = [], []
    for batch in passes:
        parts, tail = batch["parts"], batch["outputs"]
        width = batch["input_ids"].shape[1] - tail
        inputs = {key: batch[key] for key in ("input_ids", "attention_mask", "position_ids")}
        with captured(model, settings.layer) as states:
            logits = model(**inputs, use_cache=False, logits_to_keep=tail + 1).logits
        pooled = pool(states[0][:, :width], batch["attention_mask"][:, :width], settings)
        representations |= dict(zip(parts, pooled.chunk(len(parts)), strict=True))
        if tail:
            loss, there = row_losses(logits[:, :-1], batch["labels"][:, width:])
            losses += loss.chunk(len(parts))
            counted += there.chunk(len(parts))
    rows = next(iter(representations.values())).shape[0]
    if not losses:
        return Passed(representations, torch.zeros(rows, device=logits.device))
    return Passed(representations, torch.stack(losses).sum(0) / torch.stack(counted).sum(0).clamp(min=1))


@contextlib.contextmanager
def captured(model: Any, layer: int) -> Iterator[list[Tensor]]:
    """A list into which the next pass puts the hidden states of one layer, shape (rows, columns, hidden size).

    Hooks take this one layer, where the model's own `output_hidden_states` would keep a float32 copy of all of them.
    Raises UserError for a layer that the model does not have.
    """
    decoder = model.module.get_decoder() if hasattr(model, "module") else model.get_decoder()
    count = len(decoder.layers)
    if not -count - 1 <= layer <= count:
        raise UserError("the model has no such layer", value=layer, where="representation.layer",
                        do=f"use -{count + 1} to {count}; 0 is the embeddings")  # fmt: skip
    found: list[Tensor] = []
    if layer in (-1, count):
        handle = decoder.register_forward_hook(lambda _, __, output: found.append(output.last_hidden_state))
    else:  # what goes into a layer is what the one before it gave; checkpointed layers give nothing else to hooks
        following = decoder.layers[layer % (count + 1)]
        handle = following.register_forward_pre_hook(
            lambda _, positional, named: found.append(positional[0] if positional else named["hidden_states"]),
            with_kwargs=True,
        )
    try:
        yield found
    finally:
        handle.remove()


def pool(states: Tensor, mask: Tensor, settings: Representation) -> Tensor:
    """One vector a row, float32, of prompt states (rows, columns, hidden size) padded on the left."""
    if settings.pooling == "last":
        return states[:, -1].float()
    weights = mask.unsqueeze(-1).float()
    return (states.float() * weights).sum(1) / weights.sum(1)


def row_losses(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """(mean cross entropy over the tokens of each row, 1 where a row has any else 0), both of shape (rows,)."""
    tokens = cross_entropy(logits.float().transpose(1, 2), labels, reduction="none", ignore_index=IGNORED)
    counts = (labels != IGNORED).sum(1)
    return tokens.sum(1) / counts.clamp(min=1), (counts > 0).to(tokens.dtype)


def similarities(representations: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Cosines (benign with counterfactual, benign with injection) of each triplet, both of shape (B,)."""
    benign, counterfactual, injection = (representations[part] for part in PARTS)
    return cosine_similarity(benign, counterfactual), cosine_similarity(benign, injection)


def pair_losses(representations: Mapping[str, Tensor], temperature: float) -> tuple[Tensor, Tensor]:
    """(L_causal, L_spurious) of each triplet: minus the benign pair's cosine and the injection's, over temperature."""
    stable, spurious = similarities(representations)
    return -stable / temperature, spurious / temperature


def nce_losses(representations: Mapping[str, Tensor], temperature: float) -> tuple[Tensor, Tensor]:
    """InfoNCE (van den Oord et al. 2018, arXiv 1807.03748) of each triplet over the batch, as (L_causal, L_spurious).

    Both tell a row's counterfactual apart from others: L_causal from the counterfactuals of all other rows, L_spurious
    from the injections of all rows.
    """
    benign, counterfactual, injection = (normalize(representations[part], dim=-1) for part in PARTS)
    pairs = benign @ counterfactual.T / temperature
    positive = pairs.diagonal().unsqueeze(1)
    causal = pairs.logsumexp(1) - positive.squeeze(1)
    spurious = torch.cat([positive, benign @ injection.T / temperature], dim=1).logsumexp(1) - positive.squeeze(1)
    return causal, spurious


class Objective:
    """The contrast between representations that a recipe asks for."""

    def __init__(self, settings: Loss) -> None:
        self.settings = settings
        self.custom = None if settings.type in LOSSES else imported(settings.type, "loss.type")()

    def contrast(self, representations: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """(the loss of the representations, weighed, a mean over triplets; its parts for the log, without gradient).

        A class of the user's own is called with the three representations, each of shape (B, hidden size), and gives
        a mapping with `loss` and, for the log, whatever else it likes.
        """
        if not self.settings.contrasts:
            return torch.zeros(()), {}
        if self.custom is not None:
            told = self.custom(*(representations[part] for part in PARTS))
            return told["loss"], {k: torch.as_tensor(v).detach() for k, v in told.items() if k != "loss"}
        losses = pair_losses if self.settings.type == "causal_contrastive" else nce_losses
        causal, spurious = (each.mean() for each in losses(representations, self.settings.temperature))
        loss = self.settings.lambda_causal * causal + self.settings.lambda_spurious * spurious
        return loss, {"causal_loss": causal.detach(), "spurious_loss": spurious.detach()}


def causal_metrics(representations: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Means over triplets: causal stability (cosine of the benign pair), spurious separation (1 minus the injection's
    cosine with the benign input) and causal discrimination (how much closer the pair is than the injection)."""
    stable, spurious = similarities(representations)
    return {
        "causal_stability": stable.mean(),
        "spurious_separation": 1 - spurious.mean(),
        "causal_discrimination": (stable - spurious).mean(),
    }


def trained_parts(settings: Contrastive) -> tuple[str, ...]:
    """The parts that a training pass needs: all for a contrast, else those whose outputs are learned."""
    return tuple(part for part in PARTS if settings.loss.contrasts or part in settings.loss.task_inputs)


def imported(path: str, where: str) -> Any:
    """The object that `package.module:Name` names. Raises UserError where there is none."""
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ModuleNotFoundError, AttributeError) as error:
        raise UserError("cannot import this", value=f"{path} ({error})", where=where,
                        do="give package.module:Name of something on PYTHONPATH") from None  # fmt: skip
