"""Preference pairs: files, the choice of a right and a wrong completion, token ids, measures, what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import dag
from pipeline.errors import PipelineError, UserError
from pipeline.evaluation.generate import Completion
from pipeline.load import build_recipe
from pipeline.run import HOME, RunDir
from pipeline.settings import merge, read_yaml
from pipeline.stages.pairs import Pair, chosen_pair, encoded, pairs_of_file
from pipeline.tasks.preferences import read_preferences
from pipeline.training.models import end_of_turn
from pipeline.training.preferences import preference_values

USER, GOOD, BAD = ({"role": role, "content": text} for role, text in
                   (("user", "2 + 2"), ("assistant", "4"), ("assistant", "5")))  # fmt: skip


def written(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "2 + 2", "chosen": "4", "rejected": "5"},
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        {"chosen": [USER, GOOD], "rejected": [USER, BAD], "score": 1},
    ],
)
def test_the_usual_forms_of_pairs_are_read(tmp_path: Path, row: dict[str, Any]) -> None:
    (found,) = read_preferences(written(tmp_path / "pairs.jsonl", row))
    assert (found.prompt, found.chosen, found.rejected) == ("2 + 2", "4", "5")


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"prompt": "2 + 2", "chosen": "4"}, "field `rejected` is not a text"),
        ({"prompt": "2 + 2", "chosen": "4", "rejected": "4"}, "chosen and rejected are the same"),
        ({"prompt": [USER, GOOD, USER], "chosen": "4", "rejected": "5"}, "field `prompt` is not a text"),
        ({"prompt": "2 + 2", "chosen": [USER], "rejected": "5"}, "field `chosen` is not a text"),
    ],
)
def test_what_is_no_pair_is_named_with_its_row(tmp_path: Path, row: dict[str, Any], told: str) -> None:
    good = {"prompt": "2 + 2", "chosen": "4", "rejected": "5"}
    with pytest.raises(UserError, match=f"{told}.*row 1 of"):
        read_preferences(written(tmp_path / "pairs.jsonl", good, row))


def completions(*texts: str) -> list[Completion]:
    """`~` at the end: cut off."""
    return [Completion(text.rstrip("~"), 3, not text.endswith("~")) for text in texts]


def test_a_pair_is_a_right_and_a_wrong_completion() -> None:
    made = {
        chosen_pair("p", completions("a", "b", "x~", "y"), [True, None, False, False], [seed]) for seed in range(20)
    }
    assert made == {Pair("p", "a", "x", False), Pair("p", "a", "y", True)}
    assert chosen_pair("p", completions("a", "b"), [True, True], [0]) is None
    assert chosen_pair("p", completions("a", "b"), [False, None], [0]) is None
    assert chosen_pair("p", completions("a~", "b"), [True, False], [0]) is None, "what was cut off is no model answer"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from pipeline.recipe import ScratchModel
    from pipeline.training.scratch import train_tokenizer

    return train_tokenizer(ScratchModel(), ["2 + 2 = 4", "3 + 3 = 6"])


def test_token_ids_end_where_the_completion_does(tokenizer: Any) -> None:
    pairs = [Pair("2 + 2", "4", "6"), Pair("2 + 2", "4", "6", rejected_ended=False)]
    one, two = encoded(pairs, tokenizer, None)
    end = end_of_turn(tokenizer)
    assert tokenizer.decode(one["prompt_ids"]) == "2 + 2"
    assert (one["chosen_ids"][-1], one["rejected_ids"][-1], two["rejected_ids"]) == (end, end, one["rejected_ids"][:-1])
    longest = len(one["prompt_ids"]) + len(one["chosen_ids"])
    assert len(encoded(pairs, tokenizer, longest)) == 2 and encoded(pairs, tokenizer, longest - 1) == []


def test_no_prompt_of_a_held_out_pair_is_learned_from(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"prompt": f"{n // 2} + 1", "chosen": f"{n}", "rejected": "0 0"} for n in range(60)]
    path = written(tmp_path / "pairs.jsonl", *rows)
    made = pairs_of_file(path, 64, tokenizer, seed=1)
    assert {each.prompt for each in made.train}.isdisjoint(each.prompt for each in made.held_out)
    assert (len(made.train), len(made.held_out)) == (54, 6), "a tenth of the prompts at most"
    assert made == pairs_of_file(path, 64, tokenizer, seed=1) != pairs_of_file(path, 64, tokenizer, seed=2)


def test_margins_are_those_of_the_implicit_rewards() -> None:
    reference = torch.tensor([[-2.0, -1.0], [-3.0, -3.0], [-1.0, -2.0]])
    assert preference_values(reference, reference, 0.1)["preference_accuracy"] == 0.5
    now = torch.tensor([[-1.0, -3.0], [-3.0, -3.0], [-2.0, -2.5]])
    values = preference_values(now, reference, 0.1)
    margins = [0.1 * ((-1 + 2) - (-3 + 1)), 0.0, 0.1 * ((-2 + 1) - (-2.5 + 2))]
    assert values["reward_margin"] == pytest.approx(sum(margins) / 3)
    assert values["preference_accuracy"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert values["chosen_likelier"] == pytest.approx(2 / 3)
    assert preference_values(now[:0], reference[:0], 0.1) == {}
    assert math.isfinite(values["reward_margin"])


def tree(**changes: Any) -> dict[str, Any]:
    return merge(read_yaml(HOME / "configs" / "tiny-math-dpo.yaml"), changes)


@pytest.mark.parametrize(
    ("dpo", "told"),
    [
        ({"beta": "0.1"}, "dpo.beta must be float, not str"),
        ({"betta": 0.1}, "did you mean 'beta'"),
        ({"loss_type": "robuts"}, "unknown loss_type: 'robuts'"),
        ({"loss_type": ["sigmoid", "robuts"]}, "unknown loss_type: 'robuts'"),
        ({"label_smoothing": 0.1}, "label_smoothing means nothing to the loss sigmoid"),
        ({"max_prompt_length": 5}, "this option has another place"),
        ({"padding_free": True}, "this option has another place"),
        ({"pairs": "p.jsonl"}, "samples, temperature are for sampled pairs"),
    ],
)
def test_options_are_checked_before_anything_runs(dpo: dict[str, Any], told: str) -> None:
    changed = tree(dpo=dpo)
    changed["dpo"].pop("sampled_at_once")
    with pytest.raises(PipelineError) as caught:
        build_recipe("t", changed, "t.yaml")
    assert told in str(caught.value)


def test_label_smoothing_goes_with_the_losses_that_read_it() -> None:
    recipe = build_recipe("t", tree(dpo={"label_smoothing": 0.1, "loss_type": "robust"}), "t.yaml")
    assert recipe.trainer_options("dpo")["label_smoothing"] == 0.1


def test_answers_that_nobody_can_grade_make_no_pairs() -> None:
    with pytest.raises(PipelineError, match=r"no answer can be graded in rows of.*codealpaca"):
        build_recipe("t", tree(data={"parts": {"dpo": {"task": "codealpaca"}}}), "t.yaml")


def test_a_changed_file_of_pairs_is_a_changed_stage(tmp_path: Path) -> None:
    path = written(tmp_path / "pairs.jsonl", {"prompt": "a", "chosen": "b", "rejected": "c"})
    changed = tree()
    changed["dpo"] = {k: v for k, v in changed["dpo"].items() if k not in ("samples", "temperature", "sampled_at_once")}
    changed["dpo"]["pairs"] = str(path)
    recipe, run = build_recipe("t", changed, "t.yaml"), RunDir(tmp_path, "r")
    before = dag.build(recipe, run)
    written(path, {"prompt": "a", "chosen": "b", "rejected": "d"})
    after = dag.build(recipe, run)
    assert before["sft"].fingerprint == after["sft"].fingerprint
    assert before["dpo"].fingerprint != after["dpo"].fingerprint
