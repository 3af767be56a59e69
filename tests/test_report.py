"""The page of results: whole after a finished run, honest after a failed one, the same in a real browser."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from test_evaluation import prediction, predictions

from pipeline.evaluation.compare import compare, write_comparison
from pipeline.evaluation.predictions import write_predictions
from pipeline.evaluation.report import write_report
from pipeline.load import load_recipe, recipe_file
from pipeline.run import HOME, RunDir

LABELS = [1, 0, 1, 0, 1, 0, 1, 0]


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run with results, hostile texts among them."""
    run = RunDir(tmp_path, "r")
    run.write_resolved(load_recipe(recipe_file(HOME, "smoke")), {"via": "local"})
    for step in (1, 2, 3):
        run.log_metrics("sft", {"step": step, "loss": 3.0 / step})
    hostile = "<script>alert('x')</script> & A directly causes B."
    models = {
        "base": predictions("base", [prediction(i, None, label) for i, label in enumerate(LABELS)]),
        "sft": predictions("sft", [prediction(i, "yes", label, hypothesis=hostile) for i, label in enumerate(LABELS)]),
        "grpo": predictions(
            "grpo",
            [
                prediction(i, "no" if i == 2 else ("yes" if label else "no"), label, hypothesis=hostile,
                           steps=[{"text": "A > B", "true": False, "reason": "it is <"}])
                for i, label in enumerate(LABELS)
            ],
        ),
    }  # fmt: skip
    run.results.mkdir(parents=True)
    for name, one in models.items():
        run.predictions(name).parent.mkdir(exist_ok=True)
        write_predictions(run.predictions(name), one)
    write_comparison(run.comparison, compare(models, ["sft", "grpo"], "corr2cause", 200, 1))
    return run


def test_the_page_holds_what_the_run_has(run: RunDir) -> None:
    page = write_report(run).read_text()
    for part in ("grpo", "now right", "now wrong", "always yes", "polyline", 'class="false"', "global_batch_size"):
        assert part in page, part
    assert "<script" not in page
    assert not re.search(r"(?:src|href)\s*=|url\(|https?://", page)


def test_after_a_failed_run_it_says_what_is_missing(tmp_path: Path) -> None:
    run = RunDir(tmp_path, "r")
    run.write_resolved(load_recipe(recipe_file(HOME, "smoke")), {"via": "local"})
    run.write_state("sft", state="failed", reason="ValueError: <nonsense>")
    page = write_report(run).read_text()
    assert "no comparison yet" in page
    assert "ValueError: &lt;nonsense&gt;" in page


def test_a_torn_prediction_file_is_named(run: RunDir) -> None:
    run.predictions("sft").write_text("{")
    assert "is not JSON" in write_report(run).read_text()


@pytest.mark.parametrize("width", [1200, 400])
def test_a_browser_renders_it(run: RunDir, tmp_path: Path, width: int) -> None:
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("no Chromium here: bash scripts/install_system_packages.sh --with-browser")
    page = write_report(run)
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--disable-quic", f"--user-data-dir={tmp_path / 'profile'}",
        f"--window-size={width},900", "--enable-logging=stderr", "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert "F1 of each model with its 95 % interval" in done.stdout
    assert "now right" in done.stdout
    assert "CONSOLE" not in done.stderr
