"""Records that survive a crash."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import NeedsMissing, UserError
from pipeline.records import Done, first_difference, lock, manifest, read_done, read_json, write_done, write_json
from pipeline.run import RunDir


def outputs(root: Path) -> Path:
    folder = root / "models" / "m"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.bin").write_bytes(b"12345")
    (folder / "deep" / "b.txt").write_text("b")
    return folder


def test_a_manifest_names_what_differs(tmp_path: Path) -> None:
    folder = outputs(tmp_path)
    entries = manifest(tmp_path, [folder])
    assert [entry.path for entry in entries] == ["models/m/a.bin", "models/m/deep/b.txt"]
    assert first_difference(tmp_path, entries, thorough=True) is None

    stat = (folder / "a.bin").stat()
    (folder / "a.bin").write_bytes(b"54321")
    assert "other contents" in (first_difference(tmp_path, entries, thorough=False) or "")
    os.utime(folder / "a.bin", ns=(stat.st_atime_ns, stat.st_mtime_ns))  # same size, same time: only a hash can tell
    assert first_difference(tmp_path, entries, thorough=False) is None
    assert "other contents" in (first_difference(tmp_path, entries, thorough=True) or "")
    (folder / "a.bin").write_bytes(b"1")
    assert "has 1 bytes, not 5" in (first_difference(tmp_path, entries, thorough=False) or "")
    (folder / "a.bin").unlink()
    assert "is missing" in (first_difference(tmp_path, entries, thorough=False) or "")


def test_a_manifest_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NeedsMissing):
        manifest(tmp_path, [tmp_path / "absent"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(NeedsMissing):
        manifest(tmp_path, [tmp_path / "empty"])


def test_done_markers_round_trip_and_torn_ones_read_as_absent(tmp_path: Path) -> None:
    path = tmp_path / "done.json"
    done = Done("abc", "2026-01-01T00:00:00+00:00", manifest(tmp_path, [outputs(tmp_path)]))
    write_done(path, done)
    assert read_done(path) == done
    path.write_text(path.read_text()[:40])
    assert read_done(path) is None
    assert read_json(tmp_path / "absent.json") is None


def test_a_full_disk_at_the_marker_leaves_the_old_record(tmp_path: Path) -> None:
    """A real limit on file size stands for the full disk: the write fails in the middle with an OSError."""
    record = tmp_path / "done.json"
    write_json(record, {"old": True})
    code = (
        "import resource, signal, sys, pathlib;"
        "from pipeline.records import write_json;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10));"
        "write_json(pathlib.Path(sys.argv[1]), {'new': 'x' * 100})"
    )
    done = subprocess.run([sys.executable, "-c", code, str(record)], capture_output=True, text=True, cwd=Path.cwd())
    assert done.returncode != 0
    assert "UserError: cannot write" in done.stderr
    assert read_json(record) == {"old": True}
    assert [p.name for p in tmp_path.iterdir()] == ["done.json"]


def test_the_lock_lets_one_in_and_names_it(tmp_path: Path) -> None:
    told = "another launcher works on this run: 'first holder'"
    with (
        lock(tmp_path / ".lock", "first holder"),
        pytest.raises(UserError, match=told),
        lock(tmp_path / ".lock", "second"),
    ):
        pytest.fail("two launchers got in")
    with lock(tmp_path / ".lock", "second"):
        pass


def test_attempts_never_overwrite_and_latest_points_to_the_newest(weird_tmp_path: Path) -> None:
    run = RunDir(weird_tmp_path, "r")
    assert [run.new_attempt("sft") for _ in range(3)] == [1, 2, 3]
    run.attempt_log("sft", 3).write_text("third")
    assert run.latest_log("sft").read_text() == "third"


def test_state_and_submission_records(tmp_path: Path) -> None:
    run = RunDir(tmp_path, "r")
    assert run.state("sft") == {}
    run.write_state("sft", state="running", attempt=1)
    run.write_state("sft", state="done")
    assert run.state("sft")["state"] == "done" and run.state("sft")["attempt"] == 1
    run.write_submission("sft", job="7")
    run.write_submission("sft", via="local")
    assert "job" not in run.submission("sft")


def test_metrics_pass_over_a_torn_line(tmp_path: Path) -> None:
    run = RunDir(tmp_path, "r")
    run.log_metrics("sft", {"step": 1, "loss": 0.5})
    with run.metrics("sft").open("a") as file:
        file.write('{"step": 2, "lo')
    assert [line["step"] for line in run.read_metrics("sft")] == [1]


@pytest.mark.parametrize("name", ["", "a b", "../x", "a/b", "-x", "x" * 65, "a'b", "a\nb"])
def test_run_names_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run name"):
        RunDir(tmp_path, name)
