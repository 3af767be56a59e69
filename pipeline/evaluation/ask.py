"""Asking one model: loaded once, by generation or by answer probabilities; its completions judged by the task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipeline.evaluation.generate import Completion, complete
from pipeline.evaluation.predictions import Prediction, Sample, Step
from pipeline.recipe import Recipe
from pipeline.recipe_evaluate import Evaluate
from pipeline.tasks.corr2cause import score

Row = Mapping[str, Any]
"""A test row as preprocess writes it."""


class Asker:
    """A model that is loaded when it is asked the first time."""

    def __init__(self, recipe: Recipe, own: Evaluate, source: str) -> None:
        """`source` is a hub id, a model folder or an adapter folder."""
        self.recipe, self.own, self.source = recipe, own, source
        self._loaded: Any = None

    def ask(
        self,
        rows: Sequence[Row],
        name: str,
        known: Mapping[int, Completion],
        on_batch: Callable[[dict[int, Completion]], None],
    ) -> list[Completion]:
        """`samples` completions for each row, those of a row together; `known` ones, by place, are not made again."""
        own, seed = self.own, self.recipe.seed
        prompts = [row["prompt"] for row in rows for _ in range(own.samples)]
        if own.engine == "vllm":
            from pipeline.evaluation import vllm_engine

            self._loaded = self._loaded or vllm_engine.load(self.source, self.recipe.model)
            return vllm_engine.complete(self._loaded, prompts, own, seed, known, on_batch)
        if self._loaded is None:
            from pipeline.training.models import load_for_inference

            self._loaded = load_for_inference(self.source, self.recipe.model)
        model, tokenizer = self._loaded
        if own.mode == "answer":
            from pipeline.evaluation.answer_scores import answer_probabilities

            return answer_probabilities(
                model, tokenizer, prompts, [row["premise"] for row in rows], prefix=own.answer_prefix,
                batch_size=own.batch_size, progress=name, known=known, on_batch=on_batch,
            )  # fmt: skip
        return complete(
            model, tokenizer, prompts, max_new_tokens=own.max_new_tokens, batch_size=own.batch_size,
            temperature=own.temperature, seed=seed, progress=name, known=known, on_batch=on_batch,
            stop_at_answer=own.stop_at_answer,
        )  # fmt: skip


def judged(row: Row, completions: Sequence[Completion]) -> Prediction:
    """One line of a prediction file: the verdict on the first completion, and all of them where there are several."""
    first = completions[0]
    verdict = score(first.text, row)
    return Prediction(
        id=row["id"],
        row=row["row"],
        prompt=row["prompt"],
        completion=first.text,
        answer=verdict.parsed,
        label=row["label"],
        correct=bool(verdict.correct),
        premise_id=row["premise"],
        hypothesis=row["hypothesis"],
        num_variables=row["num_variables"],
        template=row["template"],
        steps=[Step(text=each.text, true=each.true, reason=each.reason) for each in verdict.steps],
        true_share=verdict.true_share,
        tokens=first.tokens,
        ended=first.ended,
        p_yes=first.p_yes,
        samples=[_sample(row, each) for each in completions] if len(completions) > 1 else [],
    )


def _sample(row: Row, one: Completion) -> Sample:
    verdict = score(one.text, row)
    return Sample(
        completion=one.text, answer=verdict.parsed, correct=bool(verdict.correct), tokens=one.tokens, ended=one.ended
    )


def judge_all(rows: Sequence[Row], completions: Sequence[Completion]) -> list[Prediction]:
    """The prediction of each row; completions of one row stand together, as many for each."""
    each = len(completions) // max(len(rows), 1)
    return [judged(row, completions[place * each : (place + 1) * each]) for place, row in enumerate(rows)]
