"""Folds an adapter into its base model and measures what that changes.

python -m pipeline.training.merge LOGS STAGE

An adapter that was trained over 4-bit weights has seen the rounded weights: those, dequantized, are what it is added
to, so that the merged model answers as the pair did; the original weights would give another model.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import NeedsMissing, PipelineError, UserError
from pipeline.recipe import Recipe
from pipeline.records import remove
from pipeline.run import RunDir

PROMPTS = 8
"""Prompts on which the merged model is held against the pair."""
REPORT = "merge.json"


@dataclass(frozen=True)
class Merged:
    """What a merge gave. Errors are differences of log-probabilities at the end of the prompts compared."""

    folder: str
    base: str
    quantization: str
    precision: str
    prompts: int
    mean_error: float
    largest_error: float
    same_next_token: float
    """Share of prompts after which both find the same token most probable."""


def merge(run: RunDir, recipe: Recipe, stage: str) -> Merged:
    """Write the merged model of a stage into the run's folder for it, and how far it is from the pair.

    Raises NeedsMissing when the stage's model is not there, UserError when it is no adapter.
    """
    import torch

    from pipeline.training.models import adapter_base, load_for_inference, load_merged, set_end_of_turn

    source, folder = run.model(stage), run.merged(stage)
    if not source.is_dir():
        raise NeedsMissing("no model to merge", value=stage, where=str(source), do=f"run {stage} first")
    base = adapter_base(source)
    if base is None:
        raise UserError("this model is no adapter", value=stage, where=str(source), do="use it as it is")
    pair, tokenizer = load_for_inference(source, recipe.model)
    ids = [tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids for text in _prompts(run, recipe)]
    with torch.inference_mode():
        before = [_log_probabilities(pair, each) for each in ids]
        del pair
        whole = load_merged(source, recipe.model)
        set_end_of_turn(whole, tokenizer)
        after = [_log_probabilities(whole, each) for each in ids]
    remove([folder])
    whole.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    differences = torch.stack([(one - other).abs() for one, other in zip(before, after, strict=True)])
    same = [one.argmax() == other.argmax() for one, other in zip(before, after, strict=True)]
    merged = Merged(
        folder=str(folder), base=base, quantization=recipe.model.quantization, precision=recipe.model.precision,
        prompts=len(ids), mean_error=differences.mean().item(), largest_error=differences.max().item(),
        same_next_token=sum(map(bool, same)) / len(same),
    )  # fmt: skip
    (folder / REPORT).write_text(json.dumps(asdict(merged), indent=1) + "\n", encoding="utf-8")
    return merged


def _log_probabilities(model: Any, ids: Any) -> Any:
    """Log-probabilities of the next token, float32, on the CPU."""
    logits = model(input_ids=ids.to(model.device)).logits[0, -1].float()
    return logits.log_softmax(-1).cpu()


def _prompts(run: RunDir, recipe: Recipe) -> list[str]:
    """Prompts of the dev rows; their answers play no part."""
    from pipeline import dag

    with (dag.dataset_of(recipe, run) / "dev.jsonl").open(encoding="utf-8") as file:
        return [json.loads(line)["prompt"] for line, _ in zip(file, range(PROMPTS), strict=False)]


def main(logs: str, stage: str) -> int:
    """Merge and say what came of it; the exit code."""
    run = RunDir.of_logs(Path(logs))
    try:
        merged = merge(run, run.read_resolved()[0], stage)
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"merged model: {merged.folder}")
    print(
        f"log-probabilities differ by {merged.mean_error:.2e} on average, {merged.largest_error:.2e} at most; "
        f"the same next token after {merged.same_next_token:.0%} of {merged.prompts} prompts"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
