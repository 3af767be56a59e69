"""W&B over interrupted attempts: tracked offline, sent as one run with one history, no secret on the disk."""

from __future__ import annotations

import base64
import subprocess
from pathlib import Path

import pytest
from test_cli import SHORT
from test_offline import Offline
from test_slurm_dag import copy_project
from wandb_recorder import recording

pytestmark = pytest.mark.training

SECRET = "0123456789abcdef" * 2 + "planted0"
ATTEMPTS = {"SIGUSR1": ("step", "2"), "SIGKILL": ("save", "3")}
"""Each attempt is stopped by this signal at this moment; one more trains to the end."""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Offline:
    """A project with a run whose sft stage took three attempts and tracked them offline."""
    folder = tmp_path_factory.mktemp("tracking")
    made = Offline(copy_project(folder / "project"))
    (folder / "home").mkdir()
    made.env = {name: value for name, value in made.env.items() if not name.startswith("WANDB_")}
    made.env |= {"HOME": str(folder / "home"), "WANDB_API_KEY": SECRET}
    more = ["sft.logging_steps=1", "sft.checkpoint.every_steps=1", "tracking.report_to=[wandb]"]
    made.works("run", "smoke", *SHORT, *more, "--via", "local", "--until", "preprocess")
    for name, (moment, step) in ATTEMPTS.items():
        attempt(made, name, moment, step)
        assert "sft is not done" in made.works("sync", "smoke")
    made.works("run", "smoke", *SHORT, *more, "--via", "local", "--until", "sft")
    return made


def attempt(project: Offline, name: str, moment: str, step: str) -> None:
    words = [str(project.home / "logs" / "smoke"), "sft", "sft", name, moment, step, "0"]
    subprocess.run(
        [".venv/bin/python", "tests/interrupt.py", *words], cwd=project.home, check=False, timeout=600,
        env={**project.env, "PYTHONPATH": str(project.home)},
    )  # fmt: skip


def folders(project: Offline) -> list[Path]:
    return sorted((project.home / "logs" / "smoke" / "sft" / "wandb").glob("offline-run-*"))


def test_all_attempts_are_sent_as_one_run_with_one_history(project: Offline) -> None:
    assert len(folders(project)) == 3 and len({path.name.rpartition("-")[2] for path in folders(project)}) == 1
    with recording() as recorder:
        project.env["WANDB_BASE_URL"] = recorder.url
        told = project.works("sync", "smoke")
        assert str(folders(project)[-1]) in told
        sent = list(recorder.operations)
        assert "nothing to send" in project.works("sync", "smoke") and recorder.operations == sent
    [(identity, facts)] = recorder.runs.items()
    assert folders(project)[0].name.endswith(f"-{identity}")
    assert (facts["displayName"], facts["groupName"], facts["jobType"]) == ("smoke-sft", "smoke", "sft")
    found = {line["_step"]: line["loss"] for line in recorder.history(identity) if "loss" in line}
    logged = [line for line in project.folder("smoke").read_metrics("sft") if "loss" in line]
    assert [line["_step"] for line in recorder.history(identity)] == [1, 2, 3, 4]
    assert found == {line["step"]: pytest.approx(line["loss"]) for line in logged}
    basic = base64.b64encode(f"api:{SECRET}".encode()).decode()
    assert recorder.keys == {f"Basic {basic}"}


def forget(project: Offline) -> None:
    """Make all that was sent unsent."""
    for marker in [*project.home.rglob("*.synced"), *project.home.rglob("*.syncstate")]:
        marker.unlink()


def test_a_sync_that_fails_is_told_and_can_be_repeated(project: Offline) -> None:
    forget(project)
    project.env["WANDB_BASE_URL"] = "http://127.0.0.1:9"
    key = project.env.pop("WANDB_API_KEY")
    try:
        err = project.refuses("sync", "smoke", code=1)
    finally:
        project.env["WANDB_API_KEY"] = key
    assert "did not send" in err and "`sync` again" in err
    assert not list(project.home.rglob("*.synced"))
    assert not (project.home / "wandb").exists(), "wandb wrote into the project"


def test_the_key_stands_in_no_file(project: Offline) -> None:
    files = [path for path in project.home.parent.rglob("*") if path.is_file() and ".venv" not in path.parts]
    assert any(path.suffix == ".wandb" for path in files)
    assert not [path for path in files if SECRET.encode() in path.read_bytes() and path.name != Path(__file__).name]
