"""The documents say what is there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

HOME = Path(__file__).parent.parent
PAGES = [HOME / "README.md", HOME / "CHANGELOG.md", *sorted((HOME / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_files_named_in_code_marks_exist(page: Path) -> None:
    """Paths of tracked places; what a run makes, placeholders and old spellings are left out."""
    text = page.read_text(encoding="utf-8").partition("## How the old commands")[0]
    for path in re.findall(r"`((?:pipeline|configs|slurm|scripts|tests|docs|benchmarks)/[\w./-]+)`", text):
        if path != "configs/cluster.yaml":
            assert (HOME / path).exists(), path


def test_the_tree_of_the_readme_is_the_tree() -> None:
    text = (HOME / "README.md").read_text(encoding="utf-8")
    tree = text.partition("## The tree")[2].partition("## Words")[0]
    named = set(
        re.findall(r"(?:^    |\s{2,})((?:pipeline|configs|slurm|scripts|tests|benchmarks|docs)/[\w./]*)", tree, re.M)
    )
    assert len(named) > 15
    for path in named:
        assert (HOME / path).exists(), path
    for module in (HOME / "pipeline").glob("*.py"):
        if not module.name.startswith("__"):
            assert f"pipeline/{module.name}" in tree, module.name


def test_the_two_commands_stand_early() -> None:
    lines = (HOME / "README.md").read_text(encoding="utf-8").splitlines()[:25]
    assert any("bash run_pipeline.sh tiny" in line for line in lines)
    assert any("bash scripts/test.sh" in line for line in lines)


def test_every_verb_and_exit_code_is_documented() -> None:
    page = (HOME / "docs" / "cli.md").read_text(encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "--help"], cwd=HOME, capture_output=True, text=True, check=True
    )
    verbs = re.findall(r"^  (\w+) ", done.stdout.partition("Commands:")[2], re.M)
    assert {"run", "plan", "status", "logs", "cancel", "render", "evaluate", "report"} <= set(verbs)
    for verb in verbs:
        assert f"`{verb} " in page, verb
    for code in (0, 1, 2, 3, 130):
        assert f"| {code} |" in page


@pytest.mark.parametrize("script", ["data_preprocessing", "train_sft", "train_grpo", "evaluate_model"])
def test_the_old_script_names_work(script: str, tmp_path: Path) -> None:
    command = [sys.executable, str(HOME / "scripts" / f"{script}.py")]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False).returncode == 0
    done = subprocess.run([*command, "absent", "x"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
