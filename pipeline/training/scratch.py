"""A small model with random weights and a tokenizer trained on the spot, saved as a hub model is saved."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline.recipe import ScratchModel

END = "<|end|>"
PAD = "<|pad|>"
SPECIAL_TOKENS = [PAD, END, "<|user|>", "<|assistant|>", "<|system|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
STATEMENT = r" However,|[^.;:\n]*[.;:]|\n+|[^.;:\n]+"
SPLITS = {
    "statement": STATEMENT,
    "edge": r" [<>-] \w+;?|[^.;:\n]*? [<>-] \w+(?= [<>-] )|" + STATEMENT,
    "word": r" ?[^\s]+|\s+",
}
"""What one pre-token may span: byte-pair merges never cross its end. `edge` has two for ` A > B < C;`."""


def train_tokenizer(settings: ScratchModel, texts: Iterable[str]) -> Any:
    """A byte-level BPE tokenizer (transformers' PreTrainedTokenizerFast) trained on `texts`, with a chat template."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLITS[settings.tokenizer.split]), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=settings.tokenizer.vocab_size,
            special_tokens=SPECIAL_TOKENS,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        padding_side="left",
        model_max_length=settings.max_position_embeddings,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def make_model(settings: ScratchModel, tokenizer: Any, seed: int) -> Any:
    """A causal language model of the architecture asked for, random weights of `seed`, float32."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    sizes = settings.model_dump(exclude={"architecture", "tokenizer"})
    config = AutoConfig.for_model(
        settings.architecture,
        **sizes,
        vocab_size=len(tokenizer),
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        use_cache=True,
    )
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def save_scratch(settings: ScratchModel, texts: Iterable[str], folder: Path, seed: int) -> int:
    """Train the tokenizer, make the model, save both into `folder`; the number of parameters."""
    tokenizer = train_tokenizer(settings, texts)
    model = make_model(settings, tokenizer, seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return int(model.num_parameters())
