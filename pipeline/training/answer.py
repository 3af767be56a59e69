"""Answers prompts with a run's model, token by token as they come.

python -m pipeline.training.answer LOGS STAGE chat
python -m pipeline.training.answer LOGS STAGE infer < rows

Rows are JSON lines: {"premise": ..., "hypothesis": ...} or {"prompt": ...}.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from pipeline.errors import NeedsMissing, PipelineError, UserError
from pipeline.recipe import Recipe
from pipeline.run import RunDir

MAX_NEW_TOKENS = 1024


class Answering:
    """A model with its tokenizer that answers conversations."""

    def __init__(self, run: RunDir, recipe: Recipe, stage: str) -> None:
        from pipeline.training.models import load_for_inference

        folder = run.model(stage)
        if not folder.is_dir():
            raise NeedsMissing("no model to ask", value=stage, where=str(folder), do=f"run {stage} first")
        self.model, self.tokenizer = load_for_inference(folder, recipe.model)

    def answer(self, messages: list[dict[str, str]]) -> str:
        """Write the answer to a conversation to standard output as it comes, and return it; greedy."""
        from transformers import TextStreamer

        ids = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        ).to(self.model.device)
        begins = ids["input_ids"].shape[1]
        limit = getattr(self.model.config, "max_position_embeddings", None)
        if limit and begins >= limit:
            raise UserError("longer than the model reads", value=f"{begins} tokens", do=f"at most {limit} are read")
        streamer = TextStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        most = min(MAX_NEW_TOKENS, limit - begins) if limit else MAX_NEW_TOKENS
        written = self.model.generate(**ids, max_new_tokens=most, do_sample=False, streamer=streamer)
        return str(self.tokenizer.decode(written[0, begins:], skip_special_tokens=True))


def chat(answering: Answering) -> None:
    """A conversation, a line a turn, until the input ends; an empty line starts it anew."""
    messages: list[dict[str, str]] = []
    print("Write a message; an empty line starts a new conversation, Ctrl-D ends.", file=sys.stderr, flush=True)
    for line in sys.stdin:
        text = line.strip()
        if not text:
            messages = []
            continue
        messages.append({"role": "user", "content": text})
        messages.append({"role": "assistant", "content": answering.answer(messages)})


def infer(answering: Answering, recipe: Recipe) -> None:
    """Answer each line of standard input; what the exact engine says of the answer follows it on standard error."""
    for number, line in enumerate(sys.stdin, start=1):
        if line.strip():
            row = read_row(line, number)
            prompt = str(row["prompt"]) if "prompt" in row else message_of(row, recipe)
            completion = answering.answer([{"role": "user", "content": prompt}])
            if "premise" in row:
                print(verdict(row, completion), file=sys.stderr, flush=True)


def read_row(line: str, number: int) -> dict[str, Any]:
    """One line of input. Raises UserError with its number."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        row = None
    if not isinstance(row, dict) or not ("prompt" in row or {"premise", "hypothesis"} <= row.keys()):
        raise UserError(
            f"line {number} is not to be read", value=line.strip()[:60], where="standard input",
            do='write {"premise": ..., "hypothesis": ...} or {"prompt": ...}',
        )  # fmt: skip
    return row


def message_of(row: dict[str, Any], recipe: Recipe) -> str:
    """The prompt that the model was trained with for a premise and a hypothesis."""
    from pipeline.tasks.corr2cause import message

    return message(str(row["premise"]), str(row["hypothesis"]), recipe.data.prompt)


def verdict(row: dict[str, Any], completion: str) -> str:
    """What the exact engine says: whether the hypothesis follows, and how many of the steps are true."""
    from pipeline.causal.solver import answer
    from pipeline.causal.text import read_row, write_row
    from pipeline.tasks.corr2cause import score

    exact = answer(read_row(write_row(str(row["premise"]), str(row["hypothesis"])))).verdict
    judged = score(completion, {**row, "label": int(exact == "valid")})
    false = next((f"; first false step: {step.text} ({step.reason})" for step in judged.steps if not step.true), "")
    true = sum(step.true for step in judged.steps)
    told = judged.parsed or "nothing that can be read"
    return f"[answered {told}; exactly: {exact}; {true} of {len(judged.steps)} steps true{false}]"


def main(logs: str, stage: str, mode: str) -> int:
    """Answer until the input ends."""
    run = RunDir.of_logs(Path(logs))
    recipe, _ = run.read_resolved()
    try:
        answering = Answering(run, recipe, stage)
        if mode == "chat":
            chat(answering)
        else:
            infer(answering, recipe)
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
