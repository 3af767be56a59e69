"""Splits of triplets without leaks of templates: whole benign templates apart, near-duplicate attacks found."""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from pipeline.errors import UserError
from pipeline.recipe_contrastive import Triplets
from pipeline.settings import nearest
from pipeline.tasks.injection import AttackTechnique, AttackType, Triplet, read_triplets
from pipeline.tasks.injection_generate import generate

GRAM = 5
"""Letters of a piece of an attack by which two are compared."""
EXAMPLES = 3
_DIGITS = re.compile(r"\d+")


@dataclass
class Splits:
    """Rows of train, dev and test, and what is to be said of them."""

    rows: dict[str, list[Triplet]]
    held_out: list[str]
    left_out: dict[str, int] = field(default_factory=dict)
    """Rows that went nowhere, by reason."""
    leaks: dict[str, dict[str, Any]] = field(default_factory=dict)
    """For dev and test: near-duplicates of training rows, shared benign inputs and system instructions, examples."""


def make_splits(source: str, settings: Triplets, seed: int) -> Splits:
    """The parts of a `triplets` stage. Raises UserError for files that break the schema or families nobody knows."""
    families = [*get_args(AttackType), *get_args(AttackTechnique)]
    for family in settings.held_out:
        if family not in families:
            raise UserError("unknown attack type or technique", value=family, where="triplets.held_out",
                            do=nearest(family, families))  # fmt: skip
    if source == "generated":
        splits = Splits(generate(settings.generated, settings.held_out, seed), settings.held_out)
    else:
        splits = _from_files(Path(source), settings, seed)
    for part in ("dev", "test"):
        _look_for_leaks(splits, part, settings)
    for name in ("train", "dev", "test"):
        if not splits.rows[name]:
            raise UserError(f"no triplet is left for {name}", value=str(splits.left_out), where="triplets",
                            do="hold out less, or set triplets.drop_near_duplicates: false")  # fmt: skip
    return splits


def is_held_out(row: Triplet, held_out: Sequence[str]) -> bool:
    """Whether training and validation must not see a row's attack."""
    return row.attack_type in held_out or row.attack_technique in held_out


def _from_files(source: Path, settings: Triplets, seed: int) -> Splits:
    """Parts of a folder (train.jsonl, val.jsonl, maybe test.jsonl) or of single files.

    Rows with a held-out attack are taken from training and validation; all go into the test part, which is otherwise
    the test file's rows, or the validation rows.
    """
    train, dev, test = _read_files(source, settings)
    if not dev:
        train, dev = _split_templates(train, settings.validation_share, seed)
    unseen = [row for row in [*train, *dev] if is_held_out(row, settings.held_out)]
    rows = {name: [r for r in part if not is_held_out(r, settings.held_out)] for name, part in
            (("train", train), ("dev", dev))}  # fmt: skip
    known = {row.id for row in test}
    rows["test"] = (test or list(rows["dev"])) + [row for row in unseen if row.id not in known]
    return Splits(rows, settings.held_out)


def check_triplets(source: str, settings: Triplets) -> None:
    """Raise UserError when a file of triplets is missing or breaks the schema."""
    if source != "generated":
        _read_files(Path(source), settings)


def _read_files(source: Path, settings: Triplets) -> tuple[list[Triplet], list[Triplet], list[Triplet]]:
    """The rows for training, validation and test, as far as there are files of them."""
    folder = source.is_dir()
    validation = source / "val.jsonl" if folder else Path(settings.validation) if settings.validation else None
    extra = source / "test.jsonl" if folder else Path(settings.test) if settings.test else None
    train = read_triplets(source / "train.jsonl" if folder else source)
    dev = read_triplets(validation) if validation else []
    test = read_triplets(extra) if extra and (settings.test or extra.is_file()) else []
    return train, dev, test


def _split_templates(rows: list[Triplet], share: float, seed: int) -> tuple[list[Triplet], list[Triplet]]:
    """(training, validation) rows; all rows of one benign pair of inputs are on one side."""
    templates = sorted({_benign(row) for row in rows})
    random.Random(seed).shuffle(templates)
    kept_out = set(templates[: max(1, round(share * len(templates)))])
    return [r for r in rows if _benign(r) not in kept_out], [r for r in rows if _benign(r) in kept_out]


def _benign(row: Triplet) -> tuple[str, str]:
    return row.user_input_benign_1, row.user_input_benign_2


def template(row: Triplet) -> str:
    """What rows of one template share: the name that the maker gave it, else a hash of the benign pair of inputs."""
    if row.metadata.template:
        return row.metadata.template
    return hashlib.sha256("\n".join(_benign(row)).encode()).hexdigest()[:12]


def attack_text(row: Triplet) -> str:
    """The attack without the benign text and context around it and without canary; digits alike, one case."""
    text = row.user_input_injection
    for around in (row.context, row.user_input_benign_1, row.user_input_benign_2, row.metadata.canary):
        text = text.replace(around, " ") if around else text
    return " ".join(_DIGITS.sub("0", text).casefold().split())


def near_duplicates(rows: Sequence[Triplet], of: Sequence[Triplet], threshold: float) -> dict[int, tuple[int, float]]:
    """For each row whose attack is near one of `of`: its index -> (index of the nearest there, their similarity).

    Similarity is Jaccard's, over the sets of pieces of GRAM letters of `attack_text` (Broder 1997, shingles).
    """
    texts = [attack_text(row) for row in of]
    first = {text: index for index, text in reversed(list(enumerate(texts)))}
    sets = {text: _pieces(text) for text in first}
    having: dict[str, list[str]] = defaultdict(list)
    for text, pieces in sets.items():
        for piece in pieces:
            having[piece].append(text)
    best: dict[str, tuple[str, float]] = {}
    found = {}
    for index, row in enumerate(rows):
        text = attack_text(row)
        if text not in best:
            best[text] = _nearest(_pieces(text), having, sets)
        if best[text][1] >= threshold:
            found[index] = (first[best[text][0]], best[text][1])
    return found


def _pieces(text: str) -> frozenset[str]:
    return frozenset(text[i : i + GRAM] for i in range(max(1, len(text) - GRAM + 1)))


def _nearest(
    pieces: frozenset[str], having: dict[str, list[str]], sets: dict[str, frozenset[str]]
) -> tuple[str, float]:
    shared: Counter[str] = Counter()
    for piece in pieces:
        shared.update(having.get(piece, ()))
    similar = ((both / (len(pieces) + len(sets[text]) - both), text) for text, both in shared.items())
    similarity, text = max(similar, default=(0.0, ""))
    return text, similarity


def _look_for_leaks(splits: Splits, part: str, settings: Triplets) -> None:
    """Record what a part shares with training, and leave near-duplicates out of it where that is asked for."""
    train, rows = splits.rows["train"], splits.rows[part]
    near = near_duplicates(rows, train, settings.near_duplicate)
    benign, systems = {_benign(row) for row in train}, {row.system_instruction for row in train}
    splits.leaks[part] = {
        "rows": len(rows),
        "near_duplicate_attacks": len(near),
        "equal_attacks": sum(similarity == 1.0 for _, similarity in near.values()),
        "benign_pairs_of_training": sum(_benign(row) in benign for row in rows),
        "system_instructions_of_training": sum(row.system_instruction in systems for row in rows),
        "left_out": len(near) if settings.drop_near_duplicates else 0,
        "examples": [
            {"row": rows[i].id, "training_row": train[j].id, "similarity": round(similarity, 3)}
            for i, (j, similarity) in list(near.items())[:EXAMPLES]
        ],
    }
    if settings.drop_near_duplicates and near:
        splits.left_out[f"{part}: near-duplicates of training rows"] = len(near)
        splits.rows[part] = [row for index, row in enumerate(rows) if index not in near]
