"""Traces the peak memory of one step with the code that is installed, without a GPU and without memory for tensors.

    python -m pipeline.fit.trace        steps as JSON lines on stdin, their traces as JSON lines on stdout

The step's own classes run under FakeTensorMode at two depths. Layers are alike, so every term of a phase's peak is
linear in depth: a trace holds its value without layers and what a layer adds (the method of LLMem, IJCAI 2024, with a
measured step in the place of formulas).
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
import warnings
from collections.abc import Iterator
from typing import Any

import torch
import trl.kernels.chunked_logprob as fused
from bitsandbytes.autograd import _functions as four_bit
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import DynamicCache
from trl.trainer.utils import add_fused_lm_head

from pipeline.fit.fake_model import DTYPES, fill, meta_model
from pipeline.fit.meter import PeakMeter
from pipeline.fit.step import Step, step_of

DEPTHS = (2, 4)
TILE = 32768
"""Columns of the tiles in which TRL's head makes logits."""
EIGHT_BIT_SMALLEST = 4096
"""Tensors of fewer elements keep 32-bit optimizer states in bitsandbytes' 8-bit optimizers."""

Phases = dict[str, dict[str, float]]


def trace(step: Step) -> dict[str, Any]:
    """{"phases": {phase: {term: [bytes without layers, bytes a layer]}}, "seconds": of CPU time}."""
    begun = time.process_time()
    shallow, deep = (peaks(step, depth) for depth in DEPTHS)
    phases = {
        phase: {
            term: _line(shallow[phase].get(term, 0.0), deep[phase].get(term, 0.0))
            for term in sorted(shallow[phase].keys() | deep[phase].keys())
        }
        for phase in shallow
    }
    return {"phases": phases, "seconds": time.process_time() - begun}


def _line(shallow: float, deep: float) -> list[float]:
    slope = (deep - shallow) / (DEPTHS[1] - DEPTHS[0])
    return [shallow - DEPTHS[0] * slope, slope]


def peaks(step: Step, layers: int) -> Phases:
    """Bytes by phase and term of a model with so many layers."""
    model = meta_model(step, layers)
    widths = {step.config["vocab_size"], TILE}
    with gpu_kernels(step.keep_inputs), FakeTensorMode(allow_non_fake_inputs=True), PeakMeter(widths) as meter:
        fill(model, step, meter)
        if step.new_tokens:
            _generate(model, step, meter)
        else:
            _train(model, step, meter)
        return {phase: dict(found) for phase, found in meter.peaks.items()}


def _train(model: Any, step: Step, meter: PeakMeter) -> None:
    """One micro-batch and the optimizer's step, with the states of earlier steps there already."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    base = model.get_base_model() if step.rank else model
    _prepare(model, base, step)
    meter.term = "optimizer"
    states = [_states(parameter, step.optimizer) for parameter in trained]
    meter.term = "gradients"
    for parameter in trained:
        parameter.register_post_accumulate_grad_hook(lambda p: meter.relabel(p.grad, "gradients"))
        parameter.grad = torch.empty_like(parameter) if step.accumulates else None
    base.model.register_forward_hook(lambda module, inputs, outputs: _mark(outputs.last_hidden_state, meter))
    meter.enter("forward", "activations")
    with torch.autocast("cpu", DTYPES[step.precision], enabled=step.autocast and step.precision != "fp32"):
        loss, kept = _loss(model, base, step)
    loss.backward()
    del loss, kept
    meter.enter("optimizer step")
    if "foreach" in step.optimizer:
        spare = [torch.empty_like(parameter) for parameter in trained]
        del spare
    del states


def _mark(hidden: torch.Tensor, meter: PeakMeter) -> None:
    """The loss begins where the last layer ends; the backward pass through the layers where its gradient arrives."""
    meter.enter("loss")
    hidden.register_hook(lambda gradient: meter.enter("backward"))


def _prepare(model: Any, base: Any, step: Step) -> None:
    model.train()
    if step.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    if step.loss == "fused" and not step.outputs:
        add_fused_lm_head(base, outputs=("log_probs", "entropy", "is_top1"))


def _states(parameter: torch.Tensor, optimizer: str) -> list[torch.Tensor]:
    """What an optimizer keeps for a parameter: two moments (AdamW), in 8 bit, or one number a row and column."""
    if "sgd" in optimizer:
        return []
    if "adafactor" in optimizer:
        return [torch.empty(parameter.shape[:1]), torch.empty(parameter.shape[1:] or 1)]
    if "8bit" in optimizer and parameter.numel() >= EIGHT_BIT_SMALLEST:
        scales = -(-parameter.numel() // 256)
        return [torch.empty(parameter.shape, dtype=torch.uint8) for _ in (1, 2)] + [torch.empty(scales) for _ in (1, 2)]
    if "bit" in optimizer or "paged" in optimizer:
        return [torch.empty(parameter.shape) for _ in (1, 2)]
    return [torch.empty_like(parameter) for _ in (1, 2)]


def _loss(model: Any, base: Any, step: Step) -> tuple[torch.Tensor, Any]:
    """The loss of a micro-batch, and what a training loop holds on to during the backward pass: the model's outputs."""
    ids = torch.zeros(step.rows, step.tokens, dtype=torch.long)
    mask = {"attention_mask": torch.ones_like(ids)} if step.padded else {}
    if step.outputs:
        return torch.stack([_tail_loss(model, ids, mask, step.outputs) for _ in range(step.passes)]).sum(), None
    if step.loss == "fused":
        outputs = model(input_ids=ids, labels=ids, fused_lm_head=True, **mask)
        return outputs.loss, outputs
    if step.loss == "full":
        outputs = model(input_ids=ids, labels=ids, use_cache=False, **mask)
        return outputs.loss, outputs
    kind, chunks = step.loss[:-2], int(step.loss[-2:])
    hidden = base.model(input_ids=ids, use_cache=False, **mask).last_hidden_state
    logits = [base.lm_head(part) for part in hidden.chunk(chunks, dim=1)]
    del hidden
    loss = _CompiledLoss.apply if kind == "compiled" else _chunk_loss
    return torch.stack([loss(part) for part in logits]).sum(), None


def _tail_loss(model: Any, ids: torch.Tensor, mask: dict[str, torch.Tensor], outputs: int) -> torch.Tensor:
    """The loss of the last tokens of each row, as the contrastive stage makes it."""
    logits = model(input_ids=ids, use_cache=False, logits_to_keep=outputs + 1, **mask).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), ids[:, -outputs:].flatten())


def _chunk_loss(logits: torch.Tensor) -> torch.Tensor:
    labels = torch.zeros(logits.shape[:-1], dtype=torch.long)
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())


class _CompiledLoss(torch.autograd.Function):  # type: ignore[misc]
    """Cross entropy as a compiled kernel has it: keeps the 16-bit logits, makes their gradient."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor) -> torch.Tensor:
        """A number."""
        ctx.save_for_backward(logits)
        return torch.empty(())

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        """The gradient of the logits."""
        return torch.empty_like(ctx.saved_tensors[0])


@torch.no_grad()  # type: ignore[untyped-decorator]
def _generate(model: Any, step: Step, meter: PeakMeter) -> None:
    """The pass over the prompts, and the one that makes the last token."""
    model.eval()
    ids = torch.zeros(step.rows, step.tokens, dtype=torch.long)
    meter.enter("prefill", "activations")
    cache: Any = _MeteredCache(meter)
    model(input_ids=ids, attention_mask=torch.ones_like(ids), past_key_values=cache, use_cache=True, logits_to_keep=1)
    cache = _MeteredCache(meter)
    heads = step.config["num_key_value_heads"]
    width = step.config.get("head_dim") or step.config["hidden_size"] // step.config["num_attention_heads"]
    shape = (step.rows, heads, step.tokens + step.new_tokens - 1, width)
    meter.term = "kv cache"
    for layer in range(model.config.num_hidden_layers):
        cache.update(*(torch.empty(shape, dtype=DTYPES[step.precision]) for _ in (1, 2)), layer)
    meter.enter("decode", "activations")
    last = torch.zeros(step.rows, 1, dtype=torch.long)
    mask = torch.ones(step.rows, step.tokens + step.new_tokens, dtype=torch.long)
    logits = model(input_ids=last, attention_mask=mask, past_key_values=cache, use_cache=True).logits[:, -1].float()
    torch.softmax(logits, dim=-1)


class _MeteredCache(DynamicCache):  # type: ignore[misc]
    """A cache whose tensors count for "kv cache"."""

    def __init__(self, meter: PeakMeter) -> None:
        super().__init__()
        self.meter = meter

    def update(self, *args: Any, **kwargs: Any) -> Any:
        """Add the keys and values of a layer."""
        term, self.meter.term = self.meter.term, "kv cache"
        kept = super().update(*args, **kwargs)
        self.meter.term = term
        return kept


@contextlib.contextmanager
def gpu_kernels(keep_inputs: bool) -> Iterator[None]:
    """Let kernels allocate as on a GPU while it is entered: those of Triton and cuBLAS nothing, dropout a mask of one
    byte an element; with `keep_inputs`, bitsandbytes' 4-bit layers keep what they multiply.
    """
    product = four_bit.MatMul4Bit.forward

    def keeping(ctx: Any, inputs: torch.Tensor, *rest: Any, **options: Any) -> Any:
        ctx.kept = inputs
        return product(ctx, inputs, *rest, **options)

    def nothing(*args: Any, **kwargs: Any) -> None:
        pass

    with contextlib.ExitStack() as changed:
        for owner, name, other in (
            (torch.nn.functional, "dropout", _dropout),
            (fused, "_forward_tile", nothing),
            (fused, "_backward_tile", nothing),
            (fused, "_addmm_fp32", nothing),
            *([(four_bit.MatMul4Bit, "forward", staticmethod(keeping))] if keep_inputs else []),
        ):
            changed.callback(setattr, owner, name, vars(owner)[name])
            setattr(owner, name, other)
        yield


def _dropout(inputs: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
    return torch.native_dropout(inputs, p, True)[0] if training and p else inputs


def main() -> None:
    """Answer steps until stdin ends."""
    warnings.simplefilter("ignore")
    for line in sys.stdin:
        print(json.dumps(trace(step_of(json.loads(line)))), flush=True)


if __name__ == "__main__":
    main()
