"""Dimensions of a base model, from the table of known ones or from its own config.json; sizes that follow from them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.recipe import Model
from pipeline.settings import parse_yaml, read_text

TABLE = Path(__file__).with_name("models.yaml")
KEYS = (
    "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "vocab_size", "tie_word_embeddings",
)  # fmt: skip
"""Keys of a config.json that decide on memory."""
FAMILIES = ("qwen2", "llama", "phi3", "qwen3", "mistral")
"""Architectures whose layers are alike, so that the peak is linear in their number."""


@dataclass(frozen=True)
class Architecture:
    """Dimensions of a decoder."""

    config: dict[str, Any]

    @property
    def layers(self) -> int:
        """Number of decoder layers."""
        return int(self.config["num_hidden_layers"])

    @property
    def key_value_width(self) -> int:
        """Width of the keys of one token in one layer; that of its values is the same."""
        return int(self.config["num_key_value_heads"]) * self._head_dim

    @property
    def _head_dim(self) -> int:
        return int(self.config.get("head_dim") or self.config["hidden_size"] // self.config["num_attention_heads"])

    @property
    def embedding(self) -> int:
        """Parameters of the token embedding; the head has as many."""
        return int(self.config["vocab_size"]) * int(self.config["hidden_size"])

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of the linear layers of one decoder layer, by name."""
        hidden, inner = int(self.config["hidden_size"]), int(self.config["intermediate_size"])
        query, key = int(self.config["num_attention_heads"]) * self._head_dim, self.key_value_width
        if self.config["model_type"] == "phi3":
            attention, mlp = {"qkv_proj": (hidden, query + 2 * key)}, {"gate_up_proj": (hidden, 2 * inner)}
        else:
            attention = {"q_proj": (hidden, query), "k_proj": (hidden, key), "v_proj": (hidden, key)}
            mlp = {"gate_proj": (hidden, inner), "up_proj": (hidden, inner)}
        return {**attention, "o_proj": (query, hidden), **mlp, "down_proj": (inner, hidden)}

    @property
    def linear_parameters(self) -> int:
        """Weights of all linear layers of the decoder: what 4-bit quantization packs."""
        return self.layers * sum(inputs * outputs for inputs, outputs in self.linears.values())

    @property
    def parameters(self) -> int:
        """All parameters."""
        hidden = int(self.config["hidden_size"])
        query, key = int(self.config["num_attention_heads"]) * self._head_dim, self.key_value_width
        biases = query + 2 * key if self.config["model_type"] == "qwen2" else 0
        norms = 2 * hidden + (2 * self._head_dim if self.config["model_type"] == "qwen3" else 0)
        embeddings = self.embedding * (1 if self.config.get("tie_word_embeddings") else 2)
        return embeddings + hidden + self.linear_parameters + self.layers * (biases + norms)

    def lora_parameters(self, rank: int, targets: list[str] | str) -> int:
        """Parameters of LoRA adapters of this rank on the targeted linear layers (or "all-linear")."""
        chosen = self.linears if targets == "all-linear" else {n: self.linears[n] for n in targets if n in self.linears}
        return self.layers * rank * sum(inputs + outputs for inputs, outputs in chosen.values())

    def weight_bytes(self, quantization: str, bytes_each: int) -> int:
        """Bytes of the base model: 16-bit or 32-bit, or NF4 with double quantization (Dettmers 2023, section 3)."""
        if quantization == "none":
            return self.parameters * bytes_each
        packed = self.linear_parameters * (4 + 8 / 64 + 32 / (64 * 256)) / 8
        return int(packed) + (self.parameters - self.linear_parameters) * bytes_each


def architecture_of(model: Model) -> Architecture | None:
    """The base model's dimensions; None for a hub id that the table does not know. Raises UserError for a folder
    whose config.json cannot be used."""
    if model.scratch is not None:
        scratch = model.scratch.model_dump()
        config = {key: scratch[key] for key in KEYS if key in scratch}
        return Architecture(
            {**config, "model_type": model.scratch.architecture, "vocab_size": model.scratch.tokenizer.vocab_size}
        )
    base = str(model.base)
    if (Path(base) / "config.json").is_file():
        return from_config_file(Path(base) / "config.json")
    return named(base)


def named(base: str) -> Architecture | None:
    """The dimensions of a published model by its hub id, if they are known."""
    table = parse_yaml(read_text(TABLE), str(TABLE))
    return next((Architecture(each["config"]) for each in table if base in each["names"]), None)


def from_config_file(path: Path) -> Architecture:
    """The dimensions in a config.json. Raises UserError when its layers are of a kind that is not known here."""
    config = json.loads(read_text(path))
    missing = [key for key in KEYS[:7] if key not in config and key not in ("num_key_value_heads", "head_dim")]
    if config.get("model_type") not in FAMILIES or missing:
        raise UserError(
            "no memory plan for this architecture", value=missing or config.get("model_type"), where=str(path),
            do="known: " + ", ".join(FAMILIES),
        )  # fmt: skip
    config.setdefault("num_key_value_heads", config["num_attention_heads"])
    return Architecture({key: config[key] for key in KEYS if config.get(key) is not None})
