"""The one command: shell files, any folder, any name of it, and no Python that will do."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_slurm_dag import copy_project

HOME = Path(__file__).parent.parent


def shell_files() -> list[str]:
    listed = ["git", "ls-files", "-z", "--", "*.sh", "*.slurm", ".ci/run"]
    found = subprocess.run(listed, cwd=HOME, capture_output=True, text=True, check=True).stdout.split("\0")
    return [name for name in found if name and (HOME / name).is_file()]


def test_shellcheck_finds_nothing() -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("no shellcheck here (bash scripts/install_system_packages.sh)")
    names = shell_files()
    assert {"run_pipeline.sh", "slurm/stage.sh", "slurm/evaluate.slurm", "scripts/setup_venv.sh"} <= set(names)
    done = subprocess.run(["shellcheck", *names], cwd=HOME, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def stamp(home: Path) -> None:
    """Say that requirements.txt is installed, as `cat requirements*.txt | sha256sum` has it."""
    contents = b"".join(path.read_bytes() for path in sorted(home.glob("requirements*.txt")))
    text = f"{hashlib.sha256(contents).hexdigest()}  -\n"
    (home / ".venv" / "installed-requirements.txt.sha256").write_text(text, encoding="utf-8")


@pytest.fixture
def home(weird_tmp_path: Path) -> Path:
    """A copy of the project, set up: its .venv hands over to this very Python, and no pip is needed."""
    home = copy_project(weird_tmp_path / "the 'project\" $(id)")
    (home / ".venv").unlink()
    binaries = home / ".venv" / "bin"
    binaries.mkdir(parents=True)
    (binaries / "python").write_text(f'#!/bin/sh\nexec {sys.prefix}/bin/python "$@"\n', encoding="utf-8")
    (binaries / "python").chmod(0o755)
    stamp(home)
    return home


def command(home: Path, cwd: Path, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(
        ["/bin/bash", str(home / "run_pipeline.sh"), *words],
        cwd=cwd, env={**kept, **env}, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


def test_it_works_from_another_folder_and_through_a_hostile_name(home: Path, weird_tmp_path: Path) -> None:
    elsewhere = weird_tmp_path / "elsewhere"
    elsewhere.mkdir()
    before = sorted(home.iterdir())
    done = command(home, elsewhere, "smoke", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "setting up" not in done.stdout and "nothing was written or submitted" in done.stdout
    assert str(home) in done.stdout, "the plan is for the copy, not for the folder it was called from"
    assert list(elsewhere.iterdir()) == [] and sorted(home.iterdir()) == before


def test_a_relative_recipe_file_is_meant_from_the_callers_folder(home: Path, weird_tmp_path: Path) -> None:
    elsewhere = weird_tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(home / "configs" / "smoke.yaml", elsewhere / "own.yaml")
    done = command(home, elsewhere, "own.yaml", "sft.max_steps=3", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "recipe own" in done.stdout


def test_its_exit_code_is_the_pipelines(home: Path) -> None:
    done = command(home, home, "smokee")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("error: ") and "smoke" in done.stderr
    assert command(home, home, "--help").returncode == 0


@pytest.fixture
def few_programs(tmp_path: Path) -> Path:
    """A folder for PATH with what the scripts call, and no Python."""
    folder = tmp_path / "programs"
    folder.mkdir()
    for program in ("bash", "cat", "dirname", "sha256sum"):
        found = shutil.which(program)
        assert found
        (folder / program).symlink_to(found)
    return folder


@pytest.mark.parametrize("old", [None, "3.10.12"])
def test_no_python_that_will_do_is_told_in_one_line(home: Path, few_programs: Path, old: str | None) -> None:
    shutil.rmtree(home / ".venv")
    if old:
        script = f'#!/bin/bash\n[ "$1" != --version ] || {{ echo "Python {old}"; exit 0; }}\nexit 1\n'
        (few_programs / "python3").write_text(script, encoding="utf-8")
        (few_programs / "python3").chmod(0o755)
    done = command(home, home, "smoke", "--dry-run", PATH=str(few_programs))
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1, done.stderr
    for part in ("error: no Python 3.11 or newer", "in PATH", " -> install one", old or "not found"):
        assert part in done.stderr, done.stderr
    assert not (home / ".venv").exists()


def test_a_changed_requirements_file_is_installed_again(home: Path, few_programs: Path) -> None:
    with (home / "requirements.txt").open("a", encoding="utf-8") as file:
        file.write("# one more line\n")
    done = command(home, home, "smoke", "--dry-run", PATH=str(few_programs))
    assert done.returncode == 2 and "no Python 3.11 or newer" in done.stderr
    stamp(home)
    assert command(home, home, "smoke", "--dry-run").returncode == 0
