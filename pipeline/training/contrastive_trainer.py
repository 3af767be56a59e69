"""A Trainer for triplets: every loss is a mean over the triplets of the global batch, however that is cut up."""

from __future__ import annotations

import contextlib
import resource
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from pipeline.recipe_contrastive import PARTS, Contrastive
from pipeline.training.contrastive import Objective, causal_metrics, passed, trained_parts
from pipeline.training.contrastive_data import collate

GIB = 1024**3


class TripletCollator:
    """Rows of token ids to passes through the model: one over all parts, or one for each."""

    def __init__(self, settings: Contrastive, pad: int, parts: Sequence[str]) -> None:
        self.settings, self.pad, self.parts = settings, pad, tuple(parts)

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """{"rows": how many, "passes": batches of `collate` with their `parts`}."""
        groups = [self.parts] if self.settings.forward == "batched" else [(part,) for part in self.parts]
        learned = self.settings.loss.task_inputs
        passes = [{"parts": each, **collate(rows, pad=self.pad, parts=each, learned=learned)} for each in groups]
        return {"rows": len(rows), "passes": passes}


class ContrastiveTrainer(Trainer):  # type: ignore[misc]
    """Trains on triplets with an `Objective`.

    The loss of a micro-batch weighs as its share of the triplets of the optimizer step, so accumulation and the number
    of processes change nothing. InfoNCE contrasts with the whole global batch: representations of all its micro-batches
    are made first, without gradients, and each micro-batch then takes its own with gradients among them. Each gets the
    full gradient of its part that way (the idea of Gao et al. 2021, arXiv 2101.06983), with the same dropout.
    """

    def __init__(self, *, own: Contrastive, pad: int, **arguments: Any) -> None:
        super().__init__(data_collator=TripletCollator(own, pad, trained_parts(own)), **arguments)
        self.own, self.objective = own, Objective(own.loss)
        self.loss_is_scaled_for_ga = True
        self._metrics: dict[str, dict[str, list[float]]] = {"train": defaultdict(list)}

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: Any) -> tuple[list[Any], None]:
        """The micro-batches of one optimizer step, each with its share of the triplets, a seed, and what it contrasts
        with."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        total = sum(batch["rows"] for batch in batches)
        for index, batch in enumerate(batches):
            batch["share"] = batch["rows"] / total
            batch["seed"] = hash((self.args.seed, self.state.global_step, index, self.args.process_index)) % 2**31
        if self.own.loss.type == "info_nce" and self.own.loss.contrasts:
            self._add_contrasts(batches)
        return batches, None

    def _add_contrasts(self, batches: list[dict[str, Any]]) -> None:
        """Give each micro-batch the representations of all triplets of the step, without gradients, and its place."""
        self.model.train()
        made: list[dict[str, Tensor]] = []
        for batch in batches:
            with torch.no_grad(), self.compute_loss_context_manager(), self._dropout_of(batch):
                passes = self._prepare_inputs({"passes": batch["passes"]})["passes"]
                made.append(passed(self.model, passes, self.own.representation).representations)
        own = {part: torch.cat([each[part] for each in made]) for part in PARTS}
        everybody = {part: self.accelerator.gather(rows) for part, rows in own.items()}
        first = self.args.process_index * len(own["benign"])
        for batch in batches:
            batch |= {"everybody": everybody, "first": first}
            first += batch["rows"]

    def _dropout_of(self, batch: dict[str, Any]) -> contextlib.AbstractContextManager[None]:
        """Random numbers that a micro-batch draws alike each time, and that leave the stage's own as they were."""
        devices = [self.args.device] if self.args.device.type == "cuda" else []

        @contextlib.contextmanager
        def seeded() -> Iterator[None]:
            with torch.random.fork_rng(devices):
                torch.manual_seed(batch["seed"])
                yield

        return seeded()

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """The micro-batch's part of the loss of the whole step."""
        everybody, share = inputs.get("everybody"), inputs["share"]
        with self._dropout_of(inputs) if everybody else contextlib.nullcontext():
            found = passed(model, inputs["passes"], self.own.representation)
        if everybody:
            first, last = inputs["first"], inputs["first"] + inputs["rows"]
            spliced = {part: torch.cat([every[:first], found.representations[part], every[last:]])
                       for part, every in everybody.items()}  # fmt: skip
            whole, parts = self.objective.contrast(spliced)
            # the whole gradient by these rows (processes average theirs), but only their share of the value
            contrast = self.args.world_size * (whole - whole.detach()) + share * whole.detach()
        else:
            mean, parts = self.objective.contrast(found.representations)
            contrast = share * mean
        task = found.task.mean()
        self._note({"task_loss": task.detach(), **parts}, found.representations, inputs["passes"])
        return contrast + share * self.own.loss.lambda_task * task

    def _note(self, parts: dict[str, Tensor], representations: dict[str, Tensor], passes: list[dict[str, Any]]) -> None:
        """Keep what the next log shows the means of."""
        if representations.keys() >= set(PARTS):
            parts = parts | causal_metrics({part: each.detach() for part, each in representations.items()})
        masks = [each["attention_mask"] for each in passes]
        slots = sum(mask.numel() for mask in masks)
        parts = parts | {"packed_tokens": torch.tensor(float(slots)),
                         "padding_share": 1 - sum(mask.sum() for mask in masks) / slots}  # fmt: skip
        for name, value in parts.items():
            self._metrics["train"][name].append(float(value))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the means since the last log, and the peak of memory, to what the Trainer logs."""
        metrics = self._metrics["train"]
        names = sorted(metrics)
        if names:
            means = torch.tensor([sum(metrics[name]) / len(metrics[name]) for name in names], dtype=torch.float64)
            means = self.accelerator.reduce(means.to(self.args.device, torch.float32), reduction="mean")
            logs = {**logs, **dict(zip(names, means.tolist(), strict=True))}
        metrics.clear()
        super().log({**logs, "memory_peak_gib": memory_peak_gib()}, start_time)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted: the Trainer's estimate knows no triplets."""
        return 0


def memory_peak_gib() -> float:
    """Most memory that this process has had so far: of its GPU where it has one, else its resident set; GiB."""
    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated() / GIB)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB
