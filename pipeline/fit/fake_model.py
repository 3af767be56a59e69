"""A model of the installed classes (transformers, PEFT, bitsandbytes) whose tensors have shapes but no memory."""

from __future__ import annotations

from typing import Any

import torch
from bitsandbytes.functional import QuantState
from bitsandbytes.nn import Linear4bit, Params4bit
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from pipeline.fit.meter import PeakMeter
from pipeline.fit.step import Step

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LONGEST = 1 << 20
"""Positions that the fake model allows; no tensor has this size."""


def meta_model(step: Step, layers: int) -> Any:
    """The model of a step with so many layers on the meta device: quantized layers and adapters as PEFT makes them."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            _config(step, layers), dtype=DTYPES[step.precision], attn_implementation=step.attention
        )
        if step.quantization == "nf4":
            _quantize(model, step)
        if step.rank:
            targets = step.targets if isinstance(step.targets, str) else list(step.targets)
            lora = LoraConfig(r=step.rank, lora_dropout=step.dropout, target_modules=targets, task_type="CAUSAL_LM")
            model = get_peft_model(model, lora)
    return model


def _config(step: Step, layers: int) -> PreTrainedConfig:
    sizes = {**step.config, "num_hidden_layers": layers, "max_position_embeddings": LONGEST, "pad_token_id": 0}
    return AutoConfig.for_model(sizes.pop("model_type"), **sizes)


def _quantize(model: Any, step: Step) -> None:
    """Put 4-bit layers in the place of all linear ones but the head, as transformers does when it loads NF4."""
    for name, module in list(model.named_modules()):
        if isinstance(module, torch.nn.Linear) and not name.endswith("lm_head"):
            packed = Linear4bit(
                module.in_features, module.out_features, module.bias is not None, DTYPES[step.precision], True, "nf4"
            )
            packed.support_avx512bf16_for_cpu = False  # else it packs its weights anew when it only infers
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, packed)
    model.is_loaded_in_4bit = True


def fill(model: Any, step: Step, meter: PeakMeter) -> None:
    """Give every parameter and buffer a tensor of the active FakeTensorMode, counted for what it is."""
    made: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                if id(parameter) not in made:
                    meter.term = "adapters" if parameter.requires_grad and step.rank else "weights"
                    made[id(parameter)] = _filled(parameter, step)
                module._parameters[name] = made[id(parameter)]
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                meter.term = "weights"
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


def _filled(parameter: torch.Tensor, step: Step) -> torch.Tensor:
    if isinstance(parameter, Params4bit):
        return _packed(parameter.shape, DTYPES[step.precision])
    wide = step.upcast and not parameter.requires_grad
    adapter = step.adapter_precision if step.rank and parameter.requires_grad else step.precision
    dtype = torch.float32 if wide else DTYPES[adapter]
    return torch.nn.Parameter(torch.empty(parameter.shape, dtype=dtype), requires_grad=parameter.requires_grad)


def _packed(shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
    """An NF4 weight with double quantization: 4 bits a weight, 8 a block of 64, 32 a block of 256 such blocks."""
    blocks = -(-shape.numel() // 64)
    nested = QuantState(
        absmax=torch.empty(-(-blocks // 256)), code=torch.empty(256), blocksize=256, dtype=torch.float32
    )
    packed: Any = torch.empty(((shape.numel() + 1) // 2, 1), dtype=torch.uint8)
    packed._is_param = True  # Parameter itself cannot be made of a fake tensor
    packed.quant_state = QuantState(
        absmax=torch.empty(blocks, dtype=torch.uint8), shape=shape, code=torch.empty(16), blocksize=64,
        quant_type="nf4", dtype=dtype, offset=torch.empty(()), state2=nested,
    )  # fmt: skip
    return packed
