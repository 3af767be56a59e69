"""Merged adapters, model cards, and answers from the terminal."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.load import build_recipe
from pipeline.recipe import Recipe
from pipeline.run import HOME, RunDir
from pipeline.settings import parse_yaml, read_yaml
from pipeline.training.merge import merge
from pipeline.training.models import load_for_inference, load_tokenizer

pytestmark = pytest.mark.training

PREMISE = (
    "Suppose there is a closed system of 3 variables, A, B and C. All the statistical relations among these 3 "
    "variables are as follows: A correlates with C. B correlates with C. However, A is independent of B."
)


def launch(run: RunDir, stage: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.training.launch", str(run.logs), stage],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def smoke(run: RunDir, **model: object) -> Recipe:
    """The smoke recipe up to SFT, with another model section."""
    tree = read_yaml(HOME / "configs" / "smoke.yaml") | {"stages": ["preprocess", "sft"]}
    for name in ("grpo", "evaluate"):
        tree.pop(name)
        tree["resources"].pop(name)
    tree["data"]["rows"].pop("grpo")
    tree["model"]["scratch"] |= {"hidden_size": 64, "intermediate_size": 128}  # bitsandbytes packs 64 weights a block
    tree["model"] |= model
    if "base" in model:
        tree["model"].pop("scratch")
    recipe = build_recipe("smoke", tree, "smoke.yaml")
    run.write_resolved(recipe, {})
    return recipe


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run whose SFT trains all weights."""
    run = RunDir(tmp_path_factory.mktemp("whole"), "whole")
    smoke(run)
    launch(run, "preprocess")
    launch(run, "sft")
    return run


@pytest.mark.parametrize(
    ("quantization", "precision", "bound"),
    [pytest.param("none", "fp32", 1e-4, marks=pytest.mark.long), ("nf4", "bf16", 0.2)],
)
def test_a_merged_adapter_answers_as_the_pair_did(
    whole: RunDir, tmp_path: Path, quantization: str, precision: str, bound: float
) -> None:
    run = RunDir(tmp_path, "adapter")
    base = str(whole.model("sft"))
    recipe = smoke(run, base=base, lora={"r": 4}, quantization=quantization, precision=precision)
    launch(run, "preprocess")
    launch(run, "sft")
    merged = merge(run, recipe, "sft")
    assert merged.mean_error <= merged.largest_error < bound
    assert json.loads((run.merged("sft") / "merge.json").read_text())["quantization"] == quantization
    config = json.loads((run.merged("sft") / "config.json").read_text())
    assert "quantization_config" not in config
    model, tokenizer = load_for_inference(run.merged("sft"), recipe.model.model_copy(update={"quantization": "none"}))
    assert not hasattr(model, "peft_config")
    ids = tokenizer("A correlates with B.", return_tensors="pt").input_ids
    assert torch.isfinite(model(ids).logits).all()
    card = (run.model("sft") / "README.md").read_text()
    assert f"base_model: {base}" in card and "library_name: peft" in card


def test_what_is_no_adapter_is_not_merged(whole: RunDir) -> None:
    told = verb(whole, "merge", "whole", "sft", code=2)
    assert "this model is no adapter" in told


def verb(run: RunDir, *words: str, code: int = 0, text: str | None = None) -> str:
    """What a verb says, with the run's folder as the output root."""
    starter = (
        "import sys; from pathlib import Path; import pipeline.verbs.arguments as a; from pipeline.cli import main;"
        f"a.output_root = lambda cluster: Path({str(run.root)!r}); sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", starter, *words], input=text, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_infer_answers_and_the_engine_judges(whole: RunDir) -> None:
    hypothesis = "A directly causes C."
    told = verb(whole, "infer", "whole", "sft", "--premise", PREMISE, "--hypothesis", hypothesis)
    assert "exactly: valid" in told
    rows = (
        json.dumps({"prompt": "A correlates with B."})
        + "\n\n"
        + json.dumps({"premise": PREMISE, "hypothesis": hypothesis})
    )
    assert verb(whole, "infer", "whole", "sft", text=rows).count("exactly: valid") == 1
    assert "line 1 is not to be read" in verb(whole, "infer", "whole", "sft", text="nonsense\n", code=2)
    assert "did you mean 'sft'" in verb(whole, "infer", "whole", "sftt", text="", code=2)


def test_chat_goes_on_until_the_input_ends(whole: RunDir) -> None:
    told = verb(whole, "chat", "whole", "base", text="hello\n\nagain\n")
    assert "an empty line starts a new conversation" in told


def test_the_card_tells_what_the_model_is(whole: RunDir) -> None:
    text = (whole.model("sft") / "README.md").read_text()
    _, header, body = text.split("---\n", 2)
    assert parse_yaml(header, "card") == {
        "library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["rlcausality", "corr2cause", "sft"],
    }  # fmt: skip
    assert "# whole, stage sft" in body and "| sft | 64 |" in body and "max_steps: 4" in body
    assert f"torch {torch.__version__.partition('+')[0]}" in body
    assert load_tokenizer(whole.model("sft")) is not None
