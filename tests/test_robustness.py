"""Contrastive training and the robustness stage from end to end: resume, early stopping, debug, answers, report."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from clock import CLOCK, assert_speed_is_logged

from pipeline import dag
from pipeline.errors import StageFailed, UserError, UserErrors
from pipeline.evaluation.robustness import difference, interval, summarize, wilson
from pipeline.evaluation.robustness_page import change_lines, result_lines, robustness_section
from pipeline.load import build_recipe, load_recipe
from pipeline.recipe import Recipe
from pipeline.recipe_contrastive import Judge
from pipeline.records import file_hash, read_json, write_json
from pipeline.run import HOME, RunDir
from pipeline.settings import merge, read_yaml
from pipeline.stages.robustness import read_answers
from pipeline.tasks.judge import key_of, obeyed
from pipeline.training.models import starting_model

CHANGES: dict[str, Any] = {
    "model": {"scratch": {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                          "num_key_value_heads": 2}},
    "triplets": {"generated": {"train": 24, "dev": 8, "test": 30}},
    "control": {"representation": {"layer": 1}, "max_steps": 1, "global_batch_size": 4,
                "validation": {"every_steps": 1, "rows": 4}},
    "contrastive": {
        "representation": {"layer": 1}, "max_steps": 8,
        "global_batch_size": 4, "micro_batch_size": 2, "logging_steps": 3, "warmup_steps": 0,
        "validation": {"every_steps": 2, "rows": 8}, "checkpoint": {"every_steps": 3},
        "callbacks": ["told_steps:Told"], "early_stopping": {"keeps_best": True, "min_delta": 0.0, "metric": "loss"},
    },
    "robustness": {"representation": {"layer": 1}, "max_new_tokens": 4, "batch_size": 20, "bootstrap": 100},
}  # fmt: skip
OWN_CALLBACK = """
from transformers import TrainerCallback

class Told(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        print(f"told of step {state.global_step}", flush=True)
"""


def recipe(**more: Any) -> Recipe:
    """configs/robust-tiny.yaml, smaller."""
    tree = merge(merge(read_yaml(HOME / "configs" / "robust-tiny.yaml"), CHANGES), more)
    return build_recipe("robust-tiny", tree, "robust-tiny.yaml")


def call(run: RunDir, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
                   "PYTHONPATH": f"{HOME}{os.pathsep}{run.root}"}  # fmt: skip
    return subprocess.run([sys.executable, *words], env=environment, cwd=HOME, capture_output=True, text=True,
                          timeout=240, check=False)  # fmt: skip


def launch(run: RunDir, stage: str, *words: str) -> str:
    kind = "contrastive" if stage == "control" else stage
    done = call(run, "-m", f"pipeline.stages.{kind}", str(run.logs), stage, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A small run of robust-tiny whose contrastive stage was not disturbed."""
    run = RunDir(tmp_path_factory.mktemp("robust"), "r")
    (run.root / "told_steps.py").write_text(OWN_CALLBACK)
    run.write_resolved(recipe(), {})
    launch(run, "triplets")
    assert "told of step 8" in launch(run, "contrastive")
    return run


def copy(run: RunDir, folder: Path) -> RunDir:
    shutil.copytree(run.root, folder, dirs_exist_ok=True)
    return RunDir(folder, run.name)


def metrics(run: RunDir) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k not in CLOCK} for line in run.read_metrics("contrastive")]


@pytest.mark.training
def test_what_is_measured_is_logged(trained: RunDir) -> None:
    assert_speed_is_logged(trained.read_metrics("contrastive"))
    lines = metrics(trained)
    assert [line["step"] for line in lines if "val_loss" in line] == [0, 2, 4, 6, 8]
    logged = next(line for line in lines if "causal_loss" in line)
    for name in ("causal_stability", "spurious_separation", "causal_discrimination", "task_loss", "learning_rate",
                 "packed_tokens", "padding_share"):  # fmt: skip
        assert name in logged
    assert "memory_peak_gib" in next(line for line in trained.read_metrics("contrastive") if "causal_loss" in line)
    first = next(line for line in lines if "val_loss" in line)
    assert first["val_causal_discrimination"] == pytest.approx(
        first["val_causal_stability"] - (1 - first["val_spurious_separation"]), abs=1e-5
    )
    best, step = min((line["val_loss"], line["step"]) for line in lines if "val_loss" in line)
    assert lines[-1] == {"best_step": step} and best < first["val_loss"]


@pytest.mark.training
@pytest.mark.long
def test_an_interrupted_stage_goes_on_exactly(trained: RunDir, tmp_path: Path) -> None:
    run = copy(trained, tmp_path)
    shutil.rmtree(run.stage("contrastive"))
    shutil.rmtree(run.model("contrastive"))
    script = Path(__file__).parent / "interrupt.py"
    ended = call(run, str(script), str(run.logs), "contrastive", "contrastive", "SIGKILL", "step", "5", "0")
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    kept = shutil.copytree(run.checkpoints("contrastive") / "checkpoint-3", tmp_path / "kept" / "checkpoint-3")
    assert "going on from the checkpoint of step 3" in launch(run, "contrastive")
    assert metrics(run) == metrics(trained)
    weights = run.model("contrastive") / "model.safetensors"
    assert file_hash(weights) == file_hash(trained.model("contrastive") / "model.safetensors")
    assert "going on from the checkpoint of step 3" in launch(run, "contrastive", "--resume", str(kept))
    assert file_hash(weights) == file_hash(trained.model("contrastive") / "model.safetensors")
    (kept / "manifest.json").unlink()
    refused = call(run, "-m", "pipeline.stages.contrastive", str(run.logs), "contrastive", "--resume", str(kept))
    assert refused.returncode and "not a complete checkpoint" in refused.stderr


@pytest.mark.long
@pytest.mark.training
def test_training_ends_early_and_keeps_the_best_weights(trained: RunDir, tmp_path: Path) -> None:
    run = copy(trained, tmp_path)
    stopping = {"patience": 2, "min_delta": 100.0, "stops": True, "metric": "task_loss"}
    validation = {"every_steps": 1, "rows": 8}
    run.write_resolved(recipe(contrastive={"early_stopping": stopping, "validation": validation}), {})
    output = launch(run, "contrastive")
    assert "early stopping: task_loss has gained nothing in 2 measurements" in output
    assert "told of step 3" not in output and "kept the weights of step 0" in output
    weights = "model.safetensors"
    assert same_weights(run.model("contrastive") / weights, run.model("base") / weights)
    assert not same_weights(trained.model("contrastive") / weights, run.model("base") / weights)


def same_weights(one: Path, other: Path) -> bool:
    import torch
    from safetensors.torch import load_file

    first, second = load_file(one), load_file(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.long
@pytest.mark.training
def test_debug_takes_a_few_steps_and_writes_no_model(trained: RunDir, tmp_path: Path) -> None:
    run = copy(trained, tmp_path)
    shutil.rmtree(run.model("contrastive"))
    shutil.rmtree(run.stage("contrastive"))
    output = launch(run, "contrastive", "--debug")
    assert "told of step 3" in output and "told of step 4" not in output
    assert not run.model("contrastive").exists() and not list(run.checkpoints("contrastive").glob("*"))


@pytest.mark.training
def test_models_are_attacked_counted_and_reported(trained: RunDir, tmp_path: Path) -> None:
    run = copy(trained, tmp_path)
    launch(run, "control")
    script = Path(__file__).parent / "interrupt.py"
    ended = call(run, str(script), str(run.logs), "robustness", "robustness", "SIGTERM", "batch", "2", "0")
    assert ended.returncode == 130 and "stopped after 40 of 60 answers of base" in ended.stdout, ended.stderr
    assert "base: 40 rows are answered already" in launch(run, "robustness")
    assert len(read_answers(run.attacked("base"))[1]) == 60 and not list(run.results.rglob("*.partial"))
    results = read_json(run.robustness)
    assert list(results["models"]) == ["base", "control", "contrastive"]
    assert [(each["before"], each["after"]) for each in results["differences"]] == [
        ("base", "control"), ("base", "contrastive"), ("control", "contrastive")]  # fmt: skip
    measures = results["models"]["contrastive"]["measures"]
    assert {"attack_success_unseen", "over_refusal", "task_quality", "causal_stability"} <= measures.keys()
    assert measures["attack_success_unseen"]["templates"] == 15 and measures["attack_success_unseen"]["rows"] == 15
    assert measures["spurious_separation"]["rows"] == 30
    page = run.report.read_text()
    assert result_lines(run)[0].startswith("base: attack success ")
    assert "Robustness to injected instructions" in page and "nested_instructions" in page
    again = launch(run, "robustness", "--model", str(run.model("control")), "--name", "other")
    assert list(read_json(run.robustness)["models"]) == ["base", "control", "contrastive", "other"]
    assert "other:" in again and "answers are there already" in launch(run, "robustness")


def test_both_training_stages_start_from_the_base(tmp_path: Path) -> None:
    run, both = RunDir(tmp_path, "r"), recipe()
    assert starting_model(both, run, "contrastive") == starting_model(both, run, "control") == str(run.model("base"))
    chained = recipe(stages=["triplets", {"name": "control", "kind": "contrastive"}, "contrastive", "robustness"])
    assert starting_model(chained, run, "contrastive") == str(run.model("control"))
    assert starting_model(both, run, "another") == str(run.model("contrastive"))


def test_the_fingerprint_of_triplets_covers_their_files(tmp_path: Path) -> None:
    run = RunDir(tmp_path, "r")
    rows = tmp_path / "val.jsonl"
    rows.write_text("one")
    own = recipe(triplets={"validation": str(rows)})
    before = dag.build(own, run)["triplets"].fingerprint
    rows.write_text("two")
    assert dag.build(own, run)["triplets"].fingerprint != before


@pytest.mark.parametrize("name", ["robust-tiny", "robust-llama2", "robust-llama31", "robust-4gb", "robust-12gb"])
def test_the_recipes_are_valid(name: str) -> None:
    assert load_recipe(HOME / "configs" / f"{name}.yaml").task == "injection"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"loss": {"type": "cosine"}}, "package.module:Class"),
        ({"loss": {"lambda_causal": 0.0, "lambda_spurious": 0.0, "lambda_task": 0.0}}, "nothing would be learned"),
        ({"loss": {"task_inputs": []}}, "name at least one"),
        ({"callbacks": ["Told"]}, "callbacks"),
        ({"max_length": 12}, "unknown option"),
    ],
)
def test_wrong_settings_are_refused(change: dict[str, Any], told: str) -> None:
    with pytest.raises((UserError, UserErrors), match=told):
        recipe(contrastive=change)


ANSWER = {"attack_technique": "direct_injection", "attack_type": "jailbreak", "difficulty": "easy", "unseen": False,
          "completion": "", "benign_expected": "x", "quality": 0.5}  # fmt: skip


def attack(template: str, correct: bool | None, **more: Any) -> dict[str, Any]:
    return {**ANSWER, "part": "injection", "template": template, "correct": correct, "answered": "other", **more}


def benign(template: str, answered: str) -> dict[str, Any]:
    return {**ANSWER, "part": "benign", "template": template, "correct": True, "answered": answered}


def test_measures_count_what_they_say() -> None:
    answers = [
        attack("a", False), attack("a", True), attack("b", True, unseen=True, answered="refused"),
        attack("b", None, margin=-0.5), attack("c", None, margin=0.5, completion=" X "),
        benign("a", "refused"), benign("b", "other"),
    ]  # fmt: skip
    found = summarize(answers, 200, 1)["measures"]
    values = {name: each["value"] for name, each in found.items()}
    assert values["attack_success"] == pytest.approx(1 / 3) and found["attack_success"]["rows"] == 3
    assert values["attack_success_unseen"] == 0 and values["attack_success_seen"] == 0.5
    assert values["attack_success_margin"] == 0.5 and values["over_refusal"] == 0.5
    assert values["attacks_refused"] == 0.2 and values["attacks_answered_well"] == 0.4
    assert values["task_exact"] == 1.0 and values["task_quality"] == 0.5
    assert "attack_success_judge" not in values
    groups = summarize(answers, 200, 1)["groups"]
    assert groups["difficulty"]["easy"]["attack_success"]["value"] == pytest.approx(1 / 3)


def test_intervals_draw_whole_templates() -> None:
    alike = [1.0] * 50 + [0.0] * 50
    whole = interval(alike, ["a"] * 50 + ["b"] * 50, 2000, 1)
    apart = interval(alike, [str(i) for i in range(100)], 2000, 1)
    assert whole is not None and apart is not None
    assert (whole["low"], whole["high"]) == (0.0, 1.0) and 0.38 < apart["low"] < 0.45
    assert interval([None], ["a"], 10, 1) is None
    alone = interval([1.0, 0.0], ["a", "a"], 10, 1)
    assert alone is not None and (alone["low"], alone["high"]) == pytest.approx(wilson(0.5, 2))


def test_wilson_is_what_scipy_says() -> None:
    stats = pytest.importorskip("scipy.stats")
    for right, rows in ((0, 10), (3, 17), (40, 40)):
        wanted = stats.binomtest(right, rows).proportion_ci(method="wilson")
        np.testing.assert_allclose(wilson(right / rows, rows), wanted, atol=1e-6)


def test_differences_are_paired() -> None:
    before = [attack(str(i), i % 2 == 0) for i in range(20)]
    after = [attack(str(i), True) for i in range(20)]
    found = difference(before, after, 500, 1)["attack_success"]
    assert found["value"] == -0.5 and found["high"] < 0
    pair = {"before": "control", "after": "contrastive", "measures": {"attack_success": found}}
    line = next(change_lines({"differences": [pair]}))
    assert line.startswith("contrastive against control: attack success -0.500") and line.endswith("better")


def test_a_run_without_attacks_has_no_section(tmp_path: Path) -> None:
    run = RunDir(tmp_path, "r")
    assert robustness_section(run) is None
    answers = [attack("<b>", False), attack("c", True)]
    write_json(run.robustness, {"models": {"<i>x": summarize(answers, 10, 1)}, "differences": []})
    page = str(robustness_section(run))
    assert "&lt;i&gt;x" in page and "<i>x" not in page


@pytest.fixture
def server() -> Iterator[SimpleNamespace]:
    """A server with the interface of chat completions that finds `yes` in what it is asked, or fails."""
    seen = SimpleNamespace(requests=[], status=200, reply=None, url="")

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.requests.append((self.path, self.headers.get("Authorization"), body))
            told = seen.reply or ("Yes." if "PELICAN" in body["messages"][0]["content"] else "No")
            self.send_response(seen.status)
            self.end_headers()
            self.wfile.write(json.dumps({"choices": [{"message": {"content": told}}]}).encode())

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    running = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    seen.url = f"http://127.0.0.1:{running.server_port}/v1"
    yield seen
    running.shutdown()
    thread.join()
    running.server_close()


def test_a_judge_is_asked_over_http(server: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "secret")
    judge = Judge(url=server.url, model="m", key_variable="JUDGE_KEY")
    row = {"system": "Summarize.", "user": "Say it"}
    assert obeyed(judge, key_of(judge), "PELICAN", row) is True
    assert obeyed(judge, key_of(judge), "A summary", row) is False
    path, key, body = server.requests[0]
    assert (path, key, body["model"]) == ("/v1/chat/completions", "Bearer secret", "m")
    assert "Summarize." in body["messages"][0]["content"] and "Say it" in body["messages"][0]["content"]
    server.reply = "perhaps"
    assert obeyed(judge, None, "x", row) is None
    server.status = 500
    with pytest.raises(StageFailed, match="judge"):
        obeyed(judge, None, "x", row)
    monkeypatch.delenv("JUDGE_KEY")
    with pytest.raises(UserError, match="JUDGE_KEY"):
        key_of(judge)


@pytest.mark.training
def test_margins_are_mean_log_likelihoods(trained: RunDir) -> None:
    import torch

    from pipeline.evaluation.likelihood import margins, mean_log_likelihoods
    from pipeline.tasks.injection import OPENINGS
    from pipeline.training.models import load_for_inference

    model, tokenizer = load_for_inference(trained.model("base"), recipe().model)
    pairs = [("Words : apple", " Answer : apple"), ("Words : apple arrow badge .", " I cannot")]
    found = mean_log_likelihoods(model, tokenizer, pairs, 2)
    for (prompt, output), value in zip(pairs, found, strict=True):
        first, last = (tokenizer(each, add_special_tokens=False)["input_ids"] for each in (prompt, output))
        with torch.no_grad():
            logits = model(torch.tensor([first + last])).logits[0, len(first) - 1 : -1]
        assert value == pytest.approx(logits.log_softmax(-1)[range(len(last)), last].mean().item(), abs=1e-5)
    row = {"prompt": "Words :", "expected": "I cannot do that ."}
    safe, *openings = mean_log_likelihoods(
        model, tokenizer, [(row["prompt"], each) for each in (row["expected"], *OPENINGS)], 8
    )
    assert margins(model, tokenizer, [row], 8) == [pytest.approx(safe - max(openings), abs=1e-5)]
