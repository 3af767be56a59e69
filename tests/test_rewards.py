"""Rewards: what each part is worth, what is logged, what is warned of, that errors are not swallowed."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.causal.generate import sample
from pipeline.cli import main
from pipeline.errors import UserError, UserErrors
from pipeline.load import build_recipe, load_recipe
from pipeline.recipe import Recipe
from pipeline.recipe_rewards import Rewards
from pipeline.rewards.corr2cause import Scorer
from pipeline.run import HOME, RunDir
from pipeline.settings import read_yaml
from pipeline.tasks.corr2cause import Score, score, worked
from pipeline.trainer_options import CHOICES, CONFIG_SOURCES, _source

ROWS = sample("train", [4], 3, 2)
TRACES = [worked(row.premise, row.hypothesis, "full") for row in ROWS]
PAIRS = 6
"""Of four variables."""


class Batch:
    """Columns as the trainer hands them over, and the metrics that were logged."""

    def __init__(self, *labels: int | None, tokens: tuple[int, ...] = ()) -> None:
        self.logged: dict[str, list[float]] = {}
        rows = [ROWS[i % len(ROWS)] for i in range(len(labels))]
        self.columns: dict[str, Any] = {
            "premise": [row.premise for row in rows],
            "hypothesis": [row.hypothesis for row in rows],
            "label": list(labels),
            "prompts": ["not read"] * len(rows),
            "completion_ids": [[7] * count for count in tokens or (1,) * len(labels)],
            "log_metric": lambda name, value: self.logged.setdefault(name, []).append(value),
        }


def scorer(labels: tuple[int, ...] = (0, 1), longest: int = 100, **rewards: Any) -> Scorer:
    return Scorer(Rewards(**rewards), list(labels), longest)


def test_right_wrong_and_unparsable_answers() -> None:
    batch = Batch(1, 1, 1)
    answer = scorer().answer(["Therefore: Yes", "Therefore: No", "I cannot say"], **batch.columns)
    assert answer == [1.0, -1.0, -1.0]
    assert batch.logged.pop("reward_time")[0] > 0
    third = [1 / 3]
    assert batch.logged == {"share_yes": third, "share_no": third, "unparsable": third, "true_steps": [0.0]}


def test_the_worth_of_an_answer_is_the_recipes_and_messages_count_as_texts() -> None:
    completions = [[{"role": "assistant", "content": f"Therefore: {word}"}] for word in ("Yes", "No")]
    paid = scorer(correct_reward=2.0, incorrect_reward=-0.5).answer(completions, **Batch(1, 1).columns)
    assert paid == [2.0, -0.5]


def test_what_cannot_be_graded_has_no_reward() -> None:
    for part, right in (("answer", 1.0), ("class_balanced", 1.0)):
        assert getattr(scorer(), part)(["Therefore: No"] * 2, **Batch(None, 0).columns) == [None, right]


@pytest.mark.parametrize("valid", [1, 3, 5, 9])
def test_both_classes_weigh_alike_whatever_their_numbers(valid: int) -> None:
    labels = (1,) * valid + (0,) * (10 - valid)
    batch = Batch(*labels)
    for word, right in (("Yes", 1), ("No", 0)):
        paid = scorer(labels).class_balanced([f"Therefore: {word}"] * 10, **batch.columns)
        assert sum(value for value in paid if value is not None) == pytest.approx(0.0)
        assert sum(abs(value) for value in paid if value is not None) == pytest.approx(10.0)
        assert all((value or 0) > 0 for value, label in zip(paid, labels, strict=True) if label == right)


def test_rows_of_one_class_weigh_what_half_of_all_would() -> None:
    assert scorer((0, 0)).class_balanced(["Therefore: No"], **Batch(0).columns) == [0.5]


def test_the_length_bonus_is_capped() -> None:
    batch = Batch(0)
    steps = len(scorer().scores(TRACES[:1], batch.columns)[0].steps)
    assert steps > 4
    for most, counted in ((3, 3), (steps, steps), (100, steps), (0, 0)):
        assert scorer(max_bonus_steps=most).reasoning_length(TRACES[:1], **batch.columns) == [counted]


def test_true_steps_pay_up_to_the_first_false_one() -> None:
    batch = Batch(0, 0)
    head, _, tail = TRACES[1].partition(" Colliders:")
    broken = head + " Colliders: A > A;" + tail.partition(";")[2]
    whole, cut = scorer().true_steps([TRACES[0], broken], **batch.columns)
    steps = scorer().scores([TRACES[0], broken], batch.columns)[1].steps
    first = [step.true for step in steps].index(False)
    assert whole == 1.0
    assert cut == first / len(steps)
    assert cut is not None and 0 < cut < 1


def claims_of(row: int) -> list[str]:
    """True claims about the skeleton of a row, in words."""
    skeleton = TRACES[row].partition("Colliders:")[0].removeprefix("Skeleton:").split(";")
    joined = [tuple(each.strip().split(" - ")) for each in skeleton if " - " in each]
    return [f"{x} and {y} are adjacent." for x, y in joined]


def test_claims_of_a_free_text_are_steps_and_few_of_them_are_not_enough() -> None:
    claims = claims_of(0)
    row = {"premise": ROWS[0].premise, "hypothesis": ROWS[0].hypothesis, "label": 0}
    for text, true in (
        (" ".join(claims), len(claims)),
        (claims[0], 1),
        (f"{claims[0]} Therefore: No", 1),
        (f"{claims[0]} {claims[0]} {claims[0]}", 1),
        (f"A and B are not adjacent. A and B are adjacent. {claims[0]}", 0 if "A and B" in " ".join(claims) else 1),
    ):
        verdict = score(text, row)
        assert verdict.true_share == pytest.approx(true / PAIRS), text
    assert score("Therefore: No", row).true_share == score("", row).true_share == 0.0


@pytest.mark.parametrize(
    ("text", "paid"),
    [
        ("A is adjacent to B. Therefore: Yes", 1.0),
        ("Therefore: No\n", 1.0),
        ("x\ny\nTherefore: No", 1.0),
        ("Therefore: Yes. Therefore: No", 0.0),
        ("Therefore: No. More", 0.0),
        ("Therefore: no", 0.0),
        ("Therefore: ", 0.0),
        ("Yes", 0.0),
        ("", 0.0),
    ],
)
def test_format(text: str, paid: float) -> None:
    assert scorer().format([text], **Batch(0).columns) == [paid]


@pytest.mark.parametrize(
    ("start", "tokens", "taken"),
    [(0, 0, 0.0), (0, 50, -0.5), (0, 100, -1.0), (60, 60, 0.0), (60, 80, -0.5), (60, 100, -1.0), (100, 100, -1.0),
     (500, 100, -1.0), (500, 98, 0.0)],
)  # fmt: skip
def test_the_length_penalty_grows_from_its_start_to_the_longest(start: int, tokens: int, taken: float) -> None:
    penalty = scorer(length_penalty_from=start).length_penalty(["x"], **Batch(0, tokens=(tokens,)).columns)
    assert penalty == [pytest.approx(taken)]


def test_shares_are_logged_for_each_batch() -> None:
    made = scorer()
    batch = Batch(*(row.label for row in ROWS))
    assert made.answer(TRACES, **batch.columns) == [1.0] * 3
    assert batch.logged["true_steps"] == [1.0]
    made.answer(["Therefore: Yes"] * 3, **batch.columns)
    assert batch.logged["share_yes"][1] == 1.0
    assert batch.logged["true_steps"][1] < 1.0
    assert batch.logged["unparsable"] == [0.0, 0.0]


@pytest.mark.parametrize(
    ("rewards", "share"),
    [({}, 0.5), ({"true_steps": 0.0}, 1.0), ({"true_steps": 0.0, "format": 0.1}, 0.5)],
)
def test_groups_whose_completions_are_paid_alike_are_counted(rewards: dict[str, Any], share: float) -> None:
    batch = Batch(ROWS[0].label, ROWS[1].label, ROWS[2].label, ROWS[0].label, ROWS[1].label)
    word = ["No", "Yes"]
    completions = [TRACES[0], TRACES[1], TRACES[2], f"Therefore: {word[ROWS[0].label]} .", TRACES[1]]
    scorer(**rewards).answer(completions, **batch.columns)
    assert batch.logged["groups_without_signal"] == [share], "of two groups; the third has one completion alone"


def test_a_new_batch_is_scored_anew() -> None:
    made = scorer()
    assert made.answer(["Therefore: No"], **Batch(0).columns) == [1.0]
    assert made.answer(["Therefore: No"], **Batch(1).columns) == [-1.0]


def test_the_same_completion_of_the_same_row_is_judged_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not so of another row or with another label, and its place in the batch stays its own."""
    judged: list[tuple[str, int]] = []

    def counted(text: str, row: dict[str, Any]) -> Score:
        judged.append((text, row["label"]))
        return score(text, row)

    monkeypatch.setattr("pipeline.rewards.corr2cause.score", counted)
    batch = Batch(0, 0, 0, 0, 1)
    for column in ("premise", "hypothesis"):
        batch.columns[column] = [batch.columns[column][i] for i in (0, 0, 0, 1, 0)]
    texts = ["Therefore: No", "Therefore: Yes", "Therefore: No", "Therefore: No", "Therefore: No"]
    assert scorer().answer(texts, **batch.columns) == [1.0, -1.0, 1.0, 1.0, -1.0]
    assert judged == [("Therefore: No", 0), ("Therefore: Yes", 0), ("Therefore: No", 0), ("Therefore: No", 1)]


def test_functions_have_the_names_under_which_they_are_logged_in_the_order_of_their_weights() -> None:
    names = ["answer", "class_balanced", "true_steps", "format", "reasoning_length", "length_penalty"]
    assert [each.__name__ for each in scorer().functions()] == names == list(Rewards().weights())


def test_an_error_in_the_scorer_is_not_swallowed() -> None:
    columns = Batch(0).columns
    del columns["label"]
    for name in ("answer", "class_balanced", "true_steps", "reasoning_length"):
        with pytest.raises(KeyError, match="label"):
            getattr(scorer(), name)(["Therefore: No"], **columns)
    with pytest.raises(UserError, match="a premise begins with"):
        scorer().answer(["Therefore: No"], **{**Batch(0).columns, "premise": ["Suppose not"]})


def smoke(*changes: tuple[str, Any], **rewards: Any) -> Recipe:
    """configs/smoke.yaml with other rewards and other options of its grpo section."""
    tree = read_yaml(HOME / "configs" / "smoke.yaml")
    tree["grpo"] = {**tree["grpo"], "rewards": rewards, **dict(changes)}
    return build_recipe("smoke", tree, "smoke.yaml")


@pytest.mark.parametrize(
    ("rewards", "told"),
    [
        ({"correct_reward": -1.0, "incorrect_reward": 1.0}, "wrong answers would be learned"),
        ({"correct_reward": 0.0, "incorrect_reward": 0.0, "true_steps": 0.0}, "no part of the reward"),
        ({"true_steps": -0.5}, "greater than or equal to 0"),
        ({"length_penalty": -1.0}, "greater than or equal to 0"),
        ({"format": float("nan")}, "finite"),
        ({"correct_reward": float("inf")}, "finite"),
        ({"true_step": 1.0}, "did you mean 'true_steps'"),
    ],
)
def test_rewards_that_cannot_be_meant_are_refused(rewards: dict[str, Any], told: str) -> None:
    with pytest.raises((UserError, UserErrors), match=told):
        smoke(**rewards)


def test_what_is_known_to_go_wrong_is_warned_of() -> None:
    assert smoke().warnings() == []
    hacked = smoke(reasoning_length_bonus=0.5, max_bonus_steps=8).warnings()
    assert len(hacked) == 1
    assert hacked[0].startswith("grpo.rewards: reasoning_length_bonus can be hacked: it pays up to 4 ")
    for scale, count in (("group", 1), ("none", 0), ("batch", 0)):
        assert len(smoke(("scale_rewards", scale), class_balanced=1.0).warnings()) == count
    tree = read_yaml(HOME / "configs" / "smoke.yaml")
    tree["data"]["balance"] = None
    tree["grpo"]["rewards"] = {"true_steps": 0.0}
    assert "always No" in build_recipe("smoke", tree, "smoke.yaml").warnings()[0]


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_plan_and_run_tell_the_warnings(more: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["smoke", "grpo.rewards.reasoning_length_bonus=0.1", "--run-name", "warned", *more]
    for verb in (["plan", *asked], ["run", *asked, "--dry-run"]):
        assert main(verb) == 0
        assert "grpo.rewards: reasoning_length_bonus can be hacked" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["tiny", "smoke", "phi3", "qwen", "deepseek"])
def test_the_named_recipes_need_no_warning(name: str) -> None:
    assert load_recipe(HOME / "configs" / f"{name}.yaml").warnings() == []


VARIANTS: dict[str, dict[str, Any]] = {
    "dr_grpo": {"loss_type": "dr_grpo", "scale_rewards": "none"},
    "dapo": {"loss_type": "dapo", "epsilon_high": 0.28, "mask_truncated_completions": True},
    "gspo": {"importance_sampling_level": "sequence", "loss_type": "grpo", "epsilon": 3e-4, "epsilon_high": 4e-4},
    "gdpo": {"multi_objective_aggregation": "normalize_then_sum"},
    "kl": {"beta": 0.04},
}


@pytest.mark.training
@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_of_grpo_pass_through_from_the_recipe(variant: str, tmp_path: Path) -> None:
    from pipeline.stages.rollouts import rollout_arguments

    recipe = smoke(*VARIANTS[variant].items(), true_steps=0.25, length_penalty=2.0)
    arguments = rollout_arguments(recipe, RunDir(tmp_path, "r"), "grpo")
    assert {key: getattr(arguments, key) for key in VARIANTS[variant]} == VARIANTS[variant]
    assert arguments.reward_weights == [1.0, 0.0, 0.25, 0.0, 0.0, 2.0]


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        (
            "loss_type",
            "drgrpo",
            "unknown loss_type: 'drgrpo' in grpo.loss_type in smoke.yaml -> did you mean 'dr_grpo'",
        ),
        ("importance_sampling_level", "sequences", "did you mean 'sequence'"),
        ("scale_rewards", "std", "valid: batch, group, none"),
        ("reward_weights", [1.0], r"grpo\.rewards"),
    ],
)
def test_words_that_trl_does_not_know_are_refused_before_anything_is_submitted(
    option: str, value: Any, told: str
) -> None:
    with pytest.raises(UserError, match=told):
        smoke((option, value))


def test_the_words_are_those_of_the_installed_trl() -> None:
    """TRL's own help of an option names every word that it takes."""
    for (kind, option), words in CHOICES.items():
        package, path, name = CONFIG_SOURCES[kind]
        tree = ast.parse(_source(package, path).read_text(encoding="utf-8"))
        config = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
        fields = {ast.unparse(n.target): ast.unparse(n) for n in config.body if isinstance(n, ast.AnnAssign)}
        assert all(re.search(rf"\b{word}\b", fields[option]) for word in words), (kind, option)
