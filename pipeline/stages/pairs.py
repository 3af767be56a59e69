"""Preference pairs for DPO: from a file, or a right and a wrong completion of the model that the stage begins with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import dag
from pipeline.errors import UserError
from pipeline.evaluation.generate import Completion, complete
from pipeline.evaluation.partial import PartialAnswers
from pipeline.evaluation.predictions import Header
from pipeline.recipe import Recipe
from pipeline.recipe_rl import Dpo
from pipeline.run import RunDir, now
from pipeline.stages.dev import verdicts
from pipeline.tasks.preferences import Preference, read_preferences
from pipeline.training.encode import Encoder
from pipeline.training.models import end_of_turn, render_prompt
from pipeline.training.ranks import rank, world_size
from pipeline.training.stop import StopFlag, end_stopped

Row = Mapping[str, Any]
LARGEST_SHARE = 10
"""Of a file at most one pair of so many is kept out of training."""


@dataclass(frozen=True)
class Pair:
    """A prompt that went through the chat template, what is to become likelier after it, and what less likely."""

    prompt: str
    chosen: str
    rejected: str
    rejected_ended: bool = True
    """False where sampling cut the completion off: the end of turn is then no part of it."""


@dataclass
class Pairs:
    """Pairs to learn from and pairs to measure on; no prompt has both. `figures` go to the metrics."""

    train: list[Pair]
    held_out: list[Pair]
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Sampler:
    """The model that a DPO stage begins with, as its pairs are sampled from it."""

    recipe: Recipe
    run: RunDir
    stage: str
    model: Any
    tokenizer: Any
    stop: StopFlag

    def ask(self, rows: Sequence[Row], part: str) -> list[list[Completion]]:
        """`samples` completions of each row; those that an earlier attempt wrote are kept.

        Ends this process when the stage shall stop.
        """
        own: Dpo = self.recipe.own(self.stage)
        path = self.run.samples(self.stage, part, rank())
        answers = PartialAnswers(path, self._header(own, part, len(rows)))
        prompts = [str(row["prompt"]) for row in rows for _ in range(own.samples)]

        def keep(made: dict[int, Completion]) -> None:
            answers.add(made)
            if self.stop.is_set():
                end_stopped(f"after {len(answers.known)} of {len(prompts)} samples of {part}")

        written = complete(
            self.model, self.tokenizer, prompts, max_new_tokens=own.max_completion_length,
            batch_size=own.sampled_at_once, temperature=own.temperature, seed=self.recipe.seed + rank(),
            progress=f"samples of {part}", known=answers.known, on_batch=keep,
        )  # fmt: skip
        return [written[first : first + own.samples] for first in range(0, len(written), own.samples)]

    def _header(self, own: Dpo, part: str, rows: int) -> Header:
        fingerprint = dag.build(self.recipe, self.run)[self.stage].fingerprint
        return Header(
            model=part, revision=None, model_fingerprint=fingerprint, recipe=self.recipe.name, run=self.run.name,
            stage=self.stage, data_fingerprint=dag.dataset_of(self.recipe, self.run).name, seed=self.recipe.seed,
            created=now(), generation={"sampled_at_once": own.sampled_at_once, "processes": world_size()}, versions={},
            rows=rows,
        )  # fmt: skip


def sampled_pairs(sampler: Sampler, train: Sequence[Row], dev: Sequence[Row]) -> Pairs:
    """Pairs of the training rows, and of the first `held_out` dev rows. Each process samples its share of the rows.

    Raises UserError when no training row has both a right and a wrong completion.
    """
    own: Dpo = sampler.recipe.own(sampler.stage)
    made, shares = _judged_pairs(sampler, train, "train")
    held_out, _ = _judged_pairs(sampler, dev[: own.held_out], "dev")
    figures = {"rows_sampled": len(train), "pairs": len(made), "held_out_pairs": len(held_out),
               "sampled_accuracy": sum(shares) / max(len(shares), 1)}  # fmt: skip
    if not made:
        raise UserError(
            "no row has both a right and a wrong completion to make a pair of; share of right ones",
            value=round(figures["sampled_accuracy"], 3), where=sampler.stage,
            do="raise samples or temperature, or give it other rows: data.parts",
        )  # fmt: skip
    return Pairs(made, held_out, figures)


def _judged_pairs(sampler: Sampler, rows: Sequence[Row], part: str) -> tuple[list[Pair], list[float]]:
    """(pairs, the share of right completions of each row), the same in every process."""
    mine = list(range(rank(), len(rows), world_size()))
    sampled = sampler.ask([rows[index] for index in mine], part)
    found: list[tuple[int, Pair | None, float]] = []
    for index, completions in zip(mine, sampled, strict=True):
        right = verdicts([rows[index]] * len(completions), [one.text for one in completions])
        pair = chosen_pair(str(rows[index]["prompt"]), completions, right, [sampler.recipe.seed, index])
        found.append((index, pair, sum(each is True for each in right) / len(right)))
    if world_size() > 1:
        from accelerate.utils import gather_object

        found = sorted(gather_object(found), key=lambda each: each[0])
    return [pair for _, pair, _ in found if pair is not None], [share for _, _, share in found]


def chosen_pair(
    prompt: str, completions: Sequence[Completion], right: Sequence[bool | None], seed: Sequence[int]
) -> Pair | None:
    """One right completion that came to its end and one wrong one, drawn by the seed; None where one is lacking."""
    good = sorted({one.text for one, correct in zip(completions, right, strict=True) if correct and one.ended})
    bad = sorted({(one.text, one.ended) for one, correct in zip(completions, right, strict=True) if correct is False})
    if not good or not bad:
        return None
    rng = np.random.default_rng(seed)
    rejected, ended = bad[rng.integers(len(bad))]
    return Pair(prompt, good[rng.integers(len(good))], rejected, ended)


def pairs_of_file(path: Path, held_out: int, tokenizer: Any, seed: int) -> Pairs:
    """The pairs of a file, prompts put through the chat template; all pairs of a prompt go to one side."""
    read = read_preferences(path)
    prompts = sorted({each.prompt for each in read})
    drawn = np.random.default_rng(seed).permutation(len(prompts))[: min(held_out, len(prompts) // LARGEST_SHARE)]
    kept_out = {prompts[place] for place in drawn}
    rendered = {prompt: render_prompt(tokenizer, prompt) for prompt in prompts}

    def pairs(some: Sequence[Preference]) -> list[Pair]:
        return [Pair(rendered[each.prompt], each.chosen, each.rejected) for each in some]

    made = Pairs(
        pairs([each for each in read if each.prompt not in kept_out]),
        pairs([each for each in read if each.prompt in kept_out]),
    )
    made.figures = {"pairs": len(made.train), "held_out_pairs": len(made.held_out)}
    return made


def encoded(pairs: Sequence[Pair], tokenizer: Any, longest: int | None) -> list[dict[str, list[int]]]:
    """`prompt_ids`, `chosen_ids` and `rejected_ids` of each pair for DPOTrainer, pairs above `longest` tokens left out.

    Prompt and completions are tokenized apart, as they are at inference.
    """
    if not pairs:
        return []
    end, texts = (
        [end_of_turn(tokenizer)],
        [text for each in pairs for text in (each.prompt, each.chosen, each.rejected)],
    )
    encoder = Encoder(tokenizer, texts[:64])
    ids = [[int(token) for part in parts for token in part] for parts in encoder.parts(texts)]
    found = []
    for each, prompt, chosen, rejected in zip(pairs, ids[0::3], ids[1::3], ids[2::3], strict=True):
        row = {"prompt_ids": prompt, "chosen_ids": chosen + end, "rejected_ids": rejected + end * each.rejected_ended}
        if longest is None or len(prompt) + max(len(row["chosen_ids"]), len(row["rejected_ids"])) <= longest:
            found.append(row)
    return found
