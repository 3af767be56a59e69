"""Loading models and tokenizers: precision, 4-bit quantization, LoRA adapters, the token that ends an answer."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.recipe import Model, Recipe
from pipeline.run import RunDir
from pipeline.training.settle import settled_here
from pipeline.training.templates import declare

PROBE = "ZZPROBEZZ"
RENDERED = 64
"""Messages at the beginning that go through the chat template itself."""
ADAPTER_CONFIG = "adapter_config.json"


def base_source(recipe: Recipe, run: RunDir) -> str:
    """Where the base model is: the scratch model that preprocess made, or a hub id or folder."""
    return str(run.model("base")) if recipe.model.scratch else str(recipe.model.base)


def starting_model(recipe: Recipe, run: RunDir, stage: str) -> str:
    """The model that a training stage starts from: that of the nearest training stage that it needs, else the base.

    A stage without `needs` of its own needs the one before it in the list; an unknown stage comes after all.
    """
    names, training = [entry.name for entry in recipe.stages], recipe.training_stages()
    if stage not in names:
        return str(run.model(training[-1])) if training else base_source(recipe, run)
    todo = [stage]
    while todo:
        entry = recipe.stage(todo.pop(0))
        needs = entry.needs if entry.needs is not None else names[: names.index(entry.name)][-1:]
        if made := [need for need in needs if need in training]:
            return str(run.model(made[-1]))
        todo += needs
    return base_source(recipe, run)


def revision_of(source: str | Path, model: Model) -> str | None:
    """The revision to load `source` at: the recipe's for its base model, none for folders that stages made."""
    return model.revision if str(source) == model.base else None


def load_tokenizer(source: str | Path, revision: str | None = None, template: str | None = None) -> Any:
    """The tokenizer of a model folder or hub id, padding on the left, with the chat template that a recipe declares.

    Raises UserError when it has none and none is declared.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    # AutoTokenizer gives every qwen2 or phi3 folder that family's own splitting rules, whatever tokenizer.json says.
    loader = PreTrainedTokenizerFast if _has_own_tokenizer(Path(source)) else AutoTokenizer
    tokenizer = loader.from_pretrained(str(source), revision=revision)
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if template is not None:
        declare(tokenizer, template)
    if not tokenizer.chat_template:
        raise UserError(
            "the tokenizer has no chat template", value=str(source), where="model.base",
            do="use an instruct model, or declare one: model.chat_template",
        )  # fmt: skip
    return tokenizer


def load_base_tokenizer(source: str | Path, model: Model) -> Any:
    """`load_tokenizer` as a recipe's model section has it: its revision and template are those of its base alone."""
    declared = model.chat_template if str(source) == model.base else None
    return load_tokenizer(source, revision_of(source, model), declared)


def _has_own_tokenizer(folder: Path) -> bool:
    """Whether a folder's tokenizer is wholly described by its tokenizer.json: one trained on the spot."""
    config = folder / "tokenizer_config.json"
    return config.is_file() and json.loads(config.read_text()).get("tokenizer_class") == "TokenizersBackend"


def render_prompt(tokenizer: Any, text: str) -> str:
    """A user message through the model's own chat template, up to where its answer begins."""
    messages = [{"role": "user", "content": text}]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def render_prompts(tokenizer: Any, texts: Iterable[str]) -> Iterator[str]:
    """`render_prompt` of each text; the template itself runs for the first RENDERED texts only.

    Where it did no more with those than to put the same text before and after them, the others are put between these
    two texts; else it runs for every one. Text with space at an end, which templates strip, always goes through it.
    """
    before, found, after = render_prompt(tokenizer, PROBE).partition(PROBE)
    fills = bool(found)
    for index, text in enumerate(texts):
        if fills and index >= RENDERED and text == text.strip():
            yield before + text + after
            continue
        rendered = render_prompt(tokenizer, text)
        fills = fills and (rendered == before + text + after or text != text.strip())
        yield rendered


def end_of_turn(tokenizer: Any) -> int:
    """Id of the token that the chat template puts after an answer: what the model must learn to end with."""
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": PROBE}]
    tail = tokenizer.apply_chat_template(messages, tokenize=False).rpartition(PROBE)[2]
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    ids = tokenizer(tail, add_special_tokens=False)["input_ids"]
    return int(next((token for token in ids if token in special), tokenizer.eos_token_id))


def torch_dtype(model: Model) -> Any:
    """The torch dtype of `model.precision`, which is settled."""
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[model.precision]


def quantization_config(model: Model) -> Any:
    """BitsAndBytesConfig for NF4 with double quantization, or None."""
    if model.quantization == "none":
        return None
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch_dtype(model),
    )


def _load_base(source: str, model: Model) -> Any:
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(
        source,
        revision=revision_of(source, model),
        dtype=torch_dtype(model),
        attn_implementation=model.attention,
        quantization_config=quantization_config(model),
        device_map=_device_map(model),
    )
    return loaded


def _device_map(model: Model) -> dict[str, int] | None:
    """Quantized weights must be loaded onto the process's own GPU; others are moved by the trainer."""
    import torch

    if model.quantization == "none" or not torch.cuda.is_available():
        return None
    return {"": torch.cuda.current_device()}


def context_length(source: str | Path, model: Model) -> int | None:
    """Tokens that a model was made for, by its config; None where it does not say."""
    from transformers import PreTrainedConfig

    base = adapter_base(Path(source)) or str(source)
    if Path(base).is_dir() and not (Path(base) / "config.json").is_file():
        return None
    config, _ = PreTrainedConfig.get_config_dict(base, revision=revision_of(base, model))
    found = config.get("max_position_embeddings")
    return None if found is None else int(found)


def adapter_base(folder: Path) -> str | None:
    """The base model that an adapter folder names, or None for a whole model."""
    path = folder / ADAPTER_CONFIG
    return str(json.loads(path.read_text())["base_model_name_or_path"]) if path.is_file() else None


def load_for_training(source: str, model: Model) -> Any:
    """A model to train: whole, or with a LoRA adapter (a new one, or the one that `source` holds).

    Adapter weights of a quantized model are float32, so that a resumed run is exact. Raises UserError when no
    module matches `model.lora.target_modules`, or the adapter is for another base model.
    """
    model, base = settled_here(model), adapter_base(Path(source))
    if base is not None:
        check_adapter(source, base, model)
    loaded = _load_base(base or source, model)
    if model.lora is None and base is None:
        return loaded
    import peft

    if base is not None:
        return _with_adapter(loaded, source, base, is_trainable=True, autocast_adapter_dtype=True)
    assert model.lora is not None
    config = peft.LoraConfig(
        r=model.lora.r,
        lora_alpha=model.lora.alpha,
        lora_dropout=model.lora.dropout,
        target_modules=model.lora.target_modules,
        task_type="CAUSAL_LM",
    )
    _check_targets(loaded, model.lora.target_modules)
    return peft.get_peft_model(loaded, config, autocast_adapter_dtype=True)


def _check_targets(loaded: Any, targets: list[str] | str) -> None:
    """Raise UserError unless each target is a module: PEFT is content when one of them is."""
    if isinstance(targets, str):
        return
    linear = {name for name, module in loaded.named_modules() if hasattr(module, "weight")}
    missing = [target for target in targets if not any(f".{name}".endswith(f".{target}") for name in linear)]
    if missing:
        inside = sorted({name.rpartition(".")[2] for name in linear if ".layers.0." in name and "norm" not in name})
        raise UserError(
            "LoRA matches no module of this model", value=missing, where="model.lora.target_modules",
            do=f"use all-linear, or names from the model: {', '.join(inside)}",
        )  # fmt: skip


def check_adapter(source: str, base: str, model: Model) -> None:
    """Raise UserError when an adapter folder names another base model than the recipe."""
    given = model.base
    if given in (None, source, base) or Path(str(given)).resolve() in (Path(source).resolve(), Path(base).resolve()):
        return
    raise UserError(
        f"the adapter {source} is for another base model than", value=given, where="model.base",
        do=f"give model.base {base}, or train an adapter for {given}",
    )  # fmt: skip


def _with_adapter(loaded: Any, source: str, base: str, **options: Any) -> Any:
    """A loaded base model with the adapter of a folder. Raises UserError when its shapes are not those of the base."""
    import peft

    try:
        return peft.PeftModel.from_pretrained(loaded, source, **options)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            "the adapter does not fit the base model that it names", value=base, where=source,
            do=f"put the weights back that it was trained on ({' '.join(str(error).split())[:160]})",
        ) from error  # fmt: skip


def load_for_inference(source: str | Path, model: Model) -> tuple[Any, Any]:
    """(model, tokenizer) ready to generate, in eval mode, on the GPU where there is one.

    `source` is a hub id, a model folder or an adapter folder (its base is loaded below it).
    """
    model, base = settled_here(model), adapter_base(Path(source))
    loaded = _load_base(base or str(source), model)
    if base is not None:
        loaded = _with_adapter(loaded, str(source), base)
    tokenizer = load_base_tokenizer(source, model)
    set_end_of_turn(loaded, tokenizer)
    return on_device(loaded, model).eval(), tokenizer


def on_device(loaded: Any, model: Model) -> Any:
    """A loaded model where it generates: on the GPU, if there is one (quantized weights are there already)."""
    import torch

    on_gpu = torch.cuda.is_available() and model.quantization == "none"
    return loaded.to(torch.cuda.current_device()) if on_gpu else loaded


def load_merged(source: str | Path, model: Model) -> Any:
    """The whole model that an adapter folder and its base make, on the CPU; 4-bit weights are dequantized first."""
    import peft

    model = settled_here(model)
    base = _load_base(str(adapter_base(Path(source))), model)
    if model.quantization != "none":
        base = base.dequantize(dtype=torch_dtype(model))
    return peft.PeftModel.from_pretrained(base, str(source)).merge_and_unload().to("cpu").eval()


def set_end_of_turn(model: Any, tokenizer: Any) -> None:
    """Let generation end at the template's end of turn as well as at the tokenizer's end of text."""
    config = model.generation_config
    config.eos_token_id = sorted({end_of_turn(tokenizer), int(tokenizer.eos_token_id)})
    config.pad_token_id = tokenizer.pad_token_id
