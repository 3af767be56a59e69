"""Each family of models: which tokens of its chat format carry loss, which modules its adapters are on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.causal.generate import sample
from pipeline.errors import UserError
from pipeline.load import load_recipe, recipe_file
from pipeline.recipe import Model, ScratchModel
from pipeline.run import HOME
from pipeline.tasks.corr2cause import message, worked
from pipeline.training import scratch
from pipeline.training.encode import IGNORED, encode
from pipeline.training.models import (
    end_of_turn,
    load_base_tokenizer,
    load_for_training,
    load_tokenizer,
    render_prompt,
)

pytestmark = pytest.mark.training

ROWS = sample("train", [3, 4], 12, 1)
MESSAGES = [message(row.premise, row.hypothesis, "default") for row in ROWS]
COMPLETIONS = [worked(row.premise, row.hypothesis, "full") for row in ROWS]
THOUGHT = "<think>\nAll of it counts.\n</think>\n\nTherefore: Yes"


@dataclass(frozen=True)
class Family:
    """A chat format as published, written anew, and the recipe of a model of the family."""

    recipe: str
    architecture: str
    template: str
    tokens: tuple[str, ...]
    end: str
    opening: str
    """How a prompt begins and, after `...`, how it ends."""


FAMILIES = {
    "chatml": Family(
        "qwen", "qwen2",
        "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are helpful.<|im_end|>\n{% endif %}"
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        ("<|im_start|>", "<|im_end|>"), "<|im_end|>", "<|im_start|>system...<|im_start|>assistant\n",
    ),
    "phi3": Family(
        "phi3", "phi3",
        "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|close|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}",
        ("<|close|>",), "<|close|>", "<|user|>\n...<|assistant|>\n",
    ),
    "deepseek": Family(
        "deepseek", "qwen2",
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}<｜User｜>{{ m['content'] }}{% else %}"
        "<｜Assistant｜>{{ m['content'].split('</think>')[-1] }}<｜close｜>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<｜Assistant｜><think>\n{% endif %}",
        ("<｜begin｜>", "<｜User｜>", "<｜Assistant｜>", "<｜close｜>"), "<｜close｜>",
        "<｜begin｜><｜User｜>...<think>\n",
    ),
    "llama2": Family(
        "llama2", "llama",
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token }}[INST] {{ m['content'].strip() }} [/INST]"
        "{% else %} {{ m['content'].strip() }} {{ eos_token }}{% endif %}{% endfor %}",
        ("<s>",), scratch.END, "<s>[INST] ... [/INST]",
    ),
    "llama3": Family(
        "llama31", "llama",
        "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
        "{{ m['content'].strip() }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), "<|eot_id|>",
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n...<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


@pytest.fixture(scope="module")
def base(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model of the family with random weights, its tokenizer with the family's marks and template."""
    folder = tmp_path_factory.mktemp(family.recipe)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    made = {"architecture": family.architecture, "num_key_value_heads": 2, "max_position_embeddings": 1024, **sizes}
    scratch.save_scratch(ScratchModel.model_validate(made), [*MESSAGES, *COMPLETIONS], folder, seed=1)
    tokenizer = load_tokenizer(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": list(family.tokens)})
    tokenizer.bos_token = family.tokens[0] if "bos_token" in family.template else None
    tokenizer.chat_template = family.template
    tokenizer.save_pretrained(folder)
    resized(folder, len(tokenizer))
    return folder


def resized(folder: Path, tokens: int) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(tokens)
    model.save_pretrained(folder)


def test_the_trainer_learns_the_completion_and_its_end_alone(family: Family, base: Path, tmp_path: Path) -> None:
    """Through our encoding and TRL's collator, as the SFT stage has it."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    tokenizer = load_tokenizer(base)
    completions = [*COMPLETIONS[:3], THOUGHT]
    prompts = [render_prompt(tokenizer, text) for text in MESSAGES[:4]]
    begins, _, ends = family.opening.partition("...")
    assert all(prompt.startswith(begins) and prompt.endswith(ends) for prompt in prompts)
    ending = end_of_turn(tokenizer)
    rows = Dataset(pa.concat_tables(encode(tokenizer, prompts, completions, ending)))
    model = load_for_training(str(base), Model.model_validate({"base": str(base), "precision": "fp32"}))
    options: dict[str, Any] = {"per_device_train_batch_size": 4, "packing": False, "max_length": None, "bf16": False}
    args = SFTConfig(output_dir=str(tmp_path), use_cpu=True, report_to="none", **options)
    trainer = SFTTrainer(model=model, args=args, train_dataset=rows, processing_class=tokenizer)
    batch = next(iter(trainer.get_train_dataloader()))
    found = {}
    for ids, labels, mask in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
        learned = labels != IGNORED
        assert ids[learned].equal(labels[learned]) and bool(mask[learned].all())
        row = ids[mask.bool()].tolist()
        where = learned[mask.bool()].tolist()
        first = where.index(True)
        assert where == [False] * first + [True] * (len(row) - first), "the loss is on the end of the row alone"
        found[tokenizer.decode(row[:first])] = tokenizer.decode(row[first:])
    wanted = [completion + family.end for completion in completions]
    assert found == dict(zip(prompts, wanted, strict=True))


def test_the_adapters_of_the_recipe_are_on_every_linear_layer(family: Family, base: Path) -> None:
    lora = load_recipe(recipe_file(HOME, family.recipe)).model.lora
    assert lora is not None
    plain = {"base": str(base), "precision": "fp32"}
    ours, every = (
        load_for_training(str(base), Model.model_validate({**plain, "lora": {"r": 4, "target_modules": names}}))
        for names in (lora.target_modules, "all-linear")
    )
    modules = [{name for name, _ in model.named_parameters() if "lora_" in name} for model in (ours, every)]
    assert modules[0] == modules[1] != set()


def test_a_target_that_is_no_module_is_refused_though_others_are(base: Path) -> None:
    lora = {"r": 4, "target_modules": ["o_proj", "no_such_proj"]}
    settings = Model.model_validate({"base": str(base), "precision": "fp32", "lora": lora})
    with pytest.raises(UserError, match=r"LoRA matches no module.*\['no_such_proj'\].*names from the model: .*o_proj"):
        load_for_training(str(base), settings)


@pytest.mark.parametrize(
    ("name", "tokens", "end"),
    [
        ("chatml", ["<|im_start|>", "<|im_end|>"], "<|im_end|>"),
        ("llama3", ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<s>"], "<|eot_id|>"),
        ("phi3", [], scratch.END),
        ("llama2", ["<s>"], scratch.END),
        ("plain", [], scratch.END),
    ],
)
def test_a_declared_template_makes_a_chat_model_of_a_base_model(
    tmp_path: Path, name: str, tokens: list[str], end: str
) -> None:
    tokenizer = scratch.train_tokenizer(ScratchModel(), [*MESSAGES, *COMPLETIONS])
    tokenizer.add_special_tokens({"additional_special_tokens": tokens})
    tokenizer.bos_token = "<s>" if "<s>" in tokens else None
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    settings: dict[str, Any] = {"base": str(tmp_path)}
    with pytest.raises(UserError, match=r"has no chat template.*model\.chat_template"):
        load_base_tokenizer(tmp_path, Model.model_validate(settings))
    found = load_base_tokenizer(tmp_path, Model.model_validate({**settings, "chat_template": name}))
    assert found.decode(end_of_turn(found)) == end
    prompt = render_prompt(found, "Why?")
    said = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    whole = found.apply_chat_template(said, tokenize=False)
    assert "Why?" in prompt and whole.startswith(prompt) and whole[len(prompt) :].strip().startswith("So.")
    for word, told in (("chatlm", "did you mean 'chatml'"), *([] if tokens else [("chatml", "has no token for")])):
        with pytest.raises(UserError, match=told):
            load_base_tokenizer(tmp_path, Model.model_validate({**settings, "chat_template": word}))


def test_a_template_of_ones_own_is_a_file(tmp_path: Path) -> None:
    tokenizer = scratch.train_tokenizer(ScratchModel(), [*MESSAGES, *COMPLETIONS])
    tokenizer.save_pretrained(tmp_path)
    file = tmp_path / "own.jinja"
    file.write_text("{% for m in messages %}# {{ m.content }}{{ eos_token }}{% endfor %}")
    settings = Model.model_validate({"base": str(tmp_path), "chat_template": str(file)})
    assert render_prompt(load_base_tokenizer(tmp_path, settings), "x") == f"# x{scratch.END}"
    with pytest.raises(UserError, match="no such file"):
        load_base_tokenizer(tmp_path, settings.model_copy(update={"chat_template": "absent.jinja"}))
