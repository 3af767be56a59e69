"""GPUs: their memory, speed, and the bytes that training takes outside the allocator."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pipeline.errors import UserError
from pipeline.settings import nearest, parse_yaml, read_text

TABLE = Path(__file__).with_name("gpus.yaml")
MIB = 1 << 20
HEADROOM = 0.03
"""Share of a card that stays free: drivers differ, and other processes take some."""
NOMINAL = 0.07
"""How far the memory that a card shows may lie from the size it is sold with."""


@dataclass(frozen=True)
class Card:
    """A kind of GPU. `memory` and `context` in MiB; speeds of 0 are not known."""

    name: str
    memory: int
    context: int
    tflops: float = 0.0
    bandwidth: float = 0.0
    bf16: bool = True

    @property
    def usable(self) -> float:
        """Bytes that a process may take."""
        return self.memory * MIB * (1 - HEADROOM)


@cache
def cards() -> tuple[Card, ...]:
    """The known cards, the smallest first."""
    table = parse_yaml(read_text(TABLE), str(TABLE))
    return tuple(sorted((Card(name, **facts) for name, facts in table.items()), key=lambda card: card.memory))


def card_named(word: str) -> Card:
    """A card by name (l4, A100-40, "NVIDIA L4") or by size (24G). Raises UserError for neither."""
    size = re.fullmatch(r"(\d+)\s*(?:G|GB|GiB)", word, re.IGNORECASE)
    if size:
        return _of_size(int(size[1]))
    found = _find(word)
    if found is None:
        names = [card.name for card in cards()]
        raise UserError("unknown GPU", value=word, where="--gpu", do=f"{nearest(word, names)}; or a size such as 24G")
    return found


def _find(word: str) -> Card | None:
    plain = re.sub(r"[^a-z0-9]", "", word.lower())
    if not plain:
        return None
    by_name = {re.sub(r"[^a-z0-9]", "", card.name): card for card in cards()}
    return by_name.get(plain) or max(
        (card for name, card in by_name.items() if name in plain), key=lambda card: len(card.name), default=None
    )


def known_card(word: str | None) -> Card | None:
    """The card that a site's or driver's word means, or None."""
    return _find(word) if word else None


def _of_size(gigabytes: int) -> Card:
    """The smallest known card of a nominal size, without its speed; else nine tenths and a half of the size."""
    fitting = [card for card in cards() if abs(card.memory / 1024 - gigabytes) <= NOMINAL * gigabytes]
    memory = fitting[0].memory if fitting else int(gigabytes * 1024 * 0.95)
    return Card(f"{gigabytes}G", memory, max(card.context for card in cards()))


def peak_tflops() -> float:
    """What this process's GPU can do in 16 bit, in TFLOP/s; 0 without one and where that is not known."""
    import torch

    card = known_card(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
    return card.tflops if card else 0.0
