"""Checkpoints on disk: what counts as complete, what is set aside, how many stay; requeues that lead nowhere."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pipeline.errors import StageFailed, UserError, UserErrors
from pipeline.load import build_recipe
from pipeline.run import HOME
from pipeline.settings import read_yaml
from pipeline.training import checkpoints
from pipeline.training.requeue import refuse_stalling


def write(root: Path, step: int, *, fingerprint: str = "f", world_size: int = 1, sealed: bool = True) -> Path:
    """A checkpoint of two files, one of them in a folder of its own."""
    folder = root / f"checkpoint-{step}"
    (folder / "part").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * step)
    (folder / "part" / "rng.pth").write_text(f"random state {step}")
    if sealed:
        checkpoints.seal(folder, step=step, world_size=world_size, fingerprint=fingerprint, metrics_bytes=7 * step)
    return folder


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def test_the_newest_by_number_is_gone_on_from(tmp_path: Path) -> None:
    for step in (2, 10, 9):
        write(tmp_path, step)
    found = checkpoints.prepare(tmp_path, "f", 1)
    assert found == checkpoints.Checkpoint(tmp_path / "checkpoint-10", 10, 1, "f", 70)
    assert checkpoints.newest(tmp_path, "f") == found
    assert len(names(tmp_path)) == 3


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert checkpoints.prepare(tmp_path / "absent", "f", 1) is None
    assert checkpoints.newest(tmp_path / "absent", "f") is None


def tear(folder: Path, way: str) -> None:
    """Make a checkpoint what a crash or a bad disk would leave."""
    model, manifest = folder / "model.safetensors", folder / "manifest.json"
    match way:
        case "no manifest":
            manifest.unlink()
        case "half a manifest":
            manifest.write_text(manifest.read_text()[:40])
        case "a short file":
            model.write_bytes(model.read_bytes()[:-1])
        case "a missing file":
            (folder / "part" / "rng.pth").unlink()
        case "a flipped bit":
            stat = model.stat()
            model.write_bytes(bytes([1]) + model.read_bytes()[1:])
            os.utime(model, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize("way", ["no manifest", "half a manifest", "a short file", "a missing file", "a flipped bit"])
def test_a_torn_checkpoint_is_set_aside(tmp_path: Path, way: str, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, 3)
    tear(write(tmp_path, 6), way)
    found = checkpoints.prepare(tmp_path, "f", 1)
    assert found is not None and found.step == 3
    assert names(tmp_path) == ["checkpoint-3", "set-aside-checkpoint-6"]
    assert "checkpoint-6 is set aside: " in capsys.readouterr().out
    assert checkpoints.newest(tmp_path, "f") == found


def test_of_those_set_aside_one_stays(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        write(tmp_path, step, sealed=False)
    assert checkpoints.prepare(tmp_path, "f", 1) is None
    assert names(tmp_path) == ["set-aside-checkpoint-1"]


def test_a_checkpoint_of_other_settings_is_not_gone_on_from(tmp_path: Path) -> None:
    write(tmp_path, 3)
    write(tmp_path, 6, fingerprint="other")
    assert checkpoints.newest(tmp_path, "f") == checkpoints.prepare(tmp_path, "f", 1)
    assert names(tmp_path) == ["checkpoint-3", "set-aside-checkpoint-6"]


def test_another_number_of_processes_is_refused_with_both(tmp_path: Path) -> None:
    write(tmp_path, 3, world_size=4)
    with pytest.raises(UserError, match=r"^4 processes wrote the checkpoint .*there are: 2 in .*-> run with 4"):
        checkpoints.prepare(tmp_path, "f", 2)
    assert names(tmp_path) == ["checkpoint-3"]


def test_the_last_ones_are_kept(tmp_path: Path) -> None:
    for step in (2, 10, 9, 1):
        write(tmp_path, step)
    checkpoints.prune(tmp_path, 2)
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-9"]


def test_a_manifest_lists_every_file(tmp_path: Path) -> None:
    written = json.loads((write(tmp_path, 3) / "manifest.json").read_text())
    assert [each["path"] for each in written["files"]] == ["model.safetensors", "part/rng.pth"]
    assert [each["size"] for each in written["files"]] == [768, 14]


@pytest.mark.parametrize(
    ("earlier", "latest", "stalls"),
    [
        ([("7", 0)] * 3, ("7", 0), True),
        ([("7", 0)] * 2, ("7", 0), False),
        ([("7", 0)] * 3, ("8", 0), False),
        ([("7", 0)] * 3, ("7", 5), False),
        ([("7", 0), ("7", 5), ("7", 5)], ("7", 5), False),
        ([("7", 0), ("7", 5), ("7", 5), ("7", 5)], ("7", 5), True),
        ([("", 0)] * 9, ("", 0), False),
    ],
)
def test_requeues_without_progress_end_the_stage(
    earlier: list[tuple[str, int]], latest: tuple[str, int], stalls: bool
) -> None:
    attempts = [{"job": job, "progress": progress} for job, progress in [*earlier, latest]]
    if not stalls:
        refuse_stalling("sft", attempts, 3)
        return
    with pytest.raises(StageFailed, match=r"3 requeues of job 7 brought sft no further than: \d in stalled_requeues"):
        refuse_stalling("sft", attempts, 3)


@pytest.mark.parametrize(
    ("option", "value", "place"),
    [
        ("save_steps", 5, "checkpoint.every_steps"),
        ("save_strategy", "epoch", "checkpoint.every_steps"),
        ("save_total_limit", 1, "checkpoint.keep"),
        ("load_best_model_at_end", True, "guard in grpo"),
        ("enable_jit_checkpoint", True, "every stage saves when it is told to stop"),
    ],
)
@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_the_trainers_own_saving_is_refused_with_the_right_place(
    stage: str, option: str, value: object, place: str
) -> None:
    tree = read_yaml(HOME / "configs" / "smoke.yaml")
    tree[stage][option] = value
    with pytest.raises((UserError, UserErrors), match=rf"another place: '{stage}.{option}'.*{place}"):
        build_recipe("smoke", tree, "smoke.yaml")


@pytest.mark.parametrize("stage", ["sft", "grpo"])
@pytest.mark.parametrize("key", ["every_steps", "keep"])
def test_no_checkpoint_at_all_cannot_be_asked_for(stage: str, key: str) -> None:
    tree = read_yaml(HOME / "configs" / "smoke.yaml")
    tree[stage]["checkpoint"] = {key: 0}
    with pytest.raises((UserError, UserErrors), match=rf"{stage}.checkpoint.{key}"):
        build_recipe("smoke", tree, "smoke.yaml")
