"""The command line as its user meets it: errors, records, Ctrl-C, full disks, exit codes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from test_slurm_dag import copy_project

from pipeline.errors import UserError
from pipeline.run import RunDir

NO_CONTROLLER = """\
ClusterName=none
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=1
NodeName=none
PartitionName=none Nodes=none
"""
"""A Slurm whose controller does not answer: nothing listens on port 1. An absent file would be waited for."""
SHORT = ("data.rows.sft=8", "data.rows.grpo=8", "data.rows.dev=4", "data.rows.test=4")
HEADER = "input,label,num_variables,template\n"


class Project:
    """A copy of the project, the command line in it, and no Slurm."""

    def __init__(self, home: Path) -> None:
        self.home = home
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SBATCH_"))}
        self.env = {**kept, "SLURM_CONF": str(home.parent / "slurm.conf"), "COLUMNS": "200"}
        (home.parent / "slurm.conf").write_text(NO_CONTROLLER, encoding="utf-8")
        self.env.pop("PYTHONPATH", None)

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start the command line in a process group of its own."""
        command = [".venv/bin/python", "-m", "pipeline", *words]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command, cwd=self.home, env=self.env, stdout=pipe, stderr=pipe, text=True, start_new_session=True
        )

    def call(self, *words: str) -> tuple[int, str, str]:
        """(exit code, stdout, stderr)."""
        child = self.start(*words)
        out, err = child.communicate(timeout=120)
        return child.returncode, out, err

    def works(self, *words: str) -> str:
        code, out, err = self.call(*words)
        assert code == 0, out + err
        return out

    def refuses(self, *words: str, code: int = 2) -> str:
        """The one line of an error; nothing else on stderr, no traceback, four parts."""
        found, out, err = self.call(*words)
        assert found == code, out + err
        assert len(err.splitlines()) == 1, err
        assert err.startswith("error: "), err
        assert " in " in err or " on the command line " in err, err
        assert " -> " in err, err
        return err

    def folder(self, run: str) -> RunDir:
        return RunDir(self.home, run)

    def files(self) -> set[str]:
        """Every path of the copy but what Python itself caches."""
        found = (path for path in self.home.rglob("*") if "__pycache__" not in path.parts)
        return {str(path.relative_to(self.home)) for path in found if ".venv" not in path.parts}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project(copy_project(tmp_path_factory.mktemp("cli") / "a 'quoted\" $folder"))


@pytest.fixture(scope="module")
def prepared(project: Project) -> str:
    """A run whose preprocess stage is done."""
    told = project.works("run", "smoke", *SHORT, "--via", "local", "--run-name", "prepared", "--until", "preprocess")
    assert "done" in told
    return "prepared"


# -- errors of the user ---------------------------------------------------------------------------------------------

REFUSED = [
    (["run", "phi33"], ["unknown recipe", "phi33", "phi3"]),
    (["phi33"], ["phi33", "phi3"]),
    (["stauts"], ["stauts", "status"]),
    (["run", "no/such.yaml"], ["no such recipe file", "no/such.yaml"]),
    (["run", "smoke", "sft.learning_rat=1"], ["sft.learning_rat", "learning_rate", "smoke.yaml"]),
    (["run", "smoke", "model.precison=fp32"], ["model.precison", "precision"]),
    (["run", "smoke", "sft.global_batch_size=many"], ["sft.global_batch_size", "many", "integer"]),
    (["run", "smoke", "seed=1.5"], ["seed", "1.5"]),
    (["run", "smoke", "sft.learning_rate"], ["not an override", "sft.learning_rate", "section.key=value"]),
    (["run", "phi3", "sft.global_batch_size=33"], ["33", "2", "sft", "phi3"]),
    (["run", "smoke", "grpo.global_batch_size=10"], ["10", "4", "num_generations"]),
    (["run", "smoke", "--only", "sftt"], ["unknown stage", "sftt", "sft"]),
    (["run", "smoke", "--from", "sftt"], ["unknown stage", "sftt"]),
    (["run", "smoke", "--via", "cloud"], ["--via", "cloud", "local, slurm or submitit"]),
    (["run", "smoke", "--via", "slurm"], ["Slurm", "--via local"]),
    (["run", "smoke", "--run-name", "../up"], ["../up", "--run-name"]),
    (["status", "nothing-here"], ["no such run", "nothing-here"]),
    (["logs", "nothing-here"], ["no such run", "nothing-here"]),
    (["cancel", "nothing-here"], ["no such run", "nothing-here"]),
    (["report", "nothing-here"], ["no such run", "nothing-here"]),
    (["evaluate", "no-such-folder", "x"], ["no such model folder", "no-such-folder"]),
    (["run", "smoke", "--nonsense"], ["--nonsense", "--help"]),
    (["run"], ["recipe", "--help"]),
]


@pytest.mark.parametrize(("words", "parts"), REFUSED, ids=[" ".join(words) for words, _ in REFUSED])
def test_a_mistake_is_told_in_one_line_and_leaves_nothing(project: Project, words: list[str], parts: list[str]) -> None:
    before = project.files()
    told = project.refuses(*words)
    assert [part for part in parts if part.lower() not in told.lower()] == [], told
    assert project.files() == before


def rows(*labels: str) -> bytes:
    text = "Premise: Suppose there are 2 variables, A and B. A correlates with B. Hypothesis: A causes B."
    return (HEADER + "".join(f'"{text}",{label},2,cause\n' for label in labels)).encode()


DATA = {
    "no-columns": (b"premise,answer\na,1\n", ["input, label", "premise"]),
    "empty": (b"", ["empty", "empty.csv"]),
    "no-rows": (HEADER.encode(), ["without rows", "no-rows.csv"]),
    "latin1": (rows("0") + "Größe,1,2,x\n".encode("latin-1"), ["UTF-8", "latin1.csv"]),
    "label": (rows("0", "yes"), ["row 1", "yes", "label.csv"]),
    "blank-label": (rows("0", "1", ""), ["row 2", "label"]),
    "text": (HEADER.encode() + b"hello,1,2,cause\n", ["row 0", "Premise", "hello"]),
}


@pytest.mark.parametrize("case", DATA)
def test_a_broken_data_file_is_named(project: Project, tmp_path: Path, case: str) -> None:
    contents, parts = DATA[case]
    path = tmp_path / f"{case}.csv"
    path.write_bytes(contents)
    told = project.refuses("run", "smoke", f"data.source={path}", "--run-name", "baddata")
    assert [part for part in parts if part not in told] == [], told
    assert not project.folder("baddata").logs.exists()


def test_a_missing_data_file_is_named(project: Project) -> None:
    told = project.refuses("run", "smoke", "data.source=./nowhere.csv", "--run-name", "baddata")
    assert "no such data file" in told and "nowhere.csv" in told
    assert not project.folder("baddata").logs.exists()


def test_a_quoted_number_in_a_file_is_refused_and_an_unquoted_one_taken(project: Project, tmp_path: Path) -> None:
    text = (project.home / "configs" / "smoke.yaml").read_text(encoding="utf-8")
    assert "learning_rate: 1e-3" in text
    quoted, plain = tmp_path / "quoted.yaml", tmp_path / "plain.yaml"
    quoted.write_text(text.replace("learning_rate: 1e-3", 'learning_rate: "1e-5"'), encoding="utf-8")
    plain.write_text(text.replace("learning_rate: 1e-3", "learning_rate: 1e-5"), encoding="utf-8")
    told = project.refuses("plan", str(quoted))
    for part in ("sft.learning_rate", "'1e-5'", "quoted.yaml", "without quotes"):
        assert part in told, told
    assert json.loads(project.works("plan", str(plain), "--json"))["run"] == "plain"


def test_several_mistakes_are_told_together(project: Project) -> None:
    code, _, err = project.call("run", "smoke", "sft.learning_rat=1", "evaluate.batch_sise=2", "seed=x")
    lines = err.splitlines()
    assert code == 2 and len(lines) == 3
    assert all(line.startswith("error: ") and " -> " in line for line in lines)


def test_a_broken_cluster_file_is_named(project: Project) -> None:
    path = project.home / "configs" / "cluster.yaml"
    path.write_text("partitoin: gpu\n", encoding="utf-8")
    try:
        told = project.refuses("run", "smoke", "--run-name", "badsite")
    finally:
        path.unlink()
    assert "partitoin" in told and "partition" in told and "cluster.yaml" in told
    assert not project.folder("badsite").logs.exists()


def test_a_needed_stage_that_is_not_done_is_exit_code_3(project: Project) -> None:
    told = project.refuses("run", "smoke", "--only", "sft", "--run-name", "alone", "--via", "local", code=3)
    assert "sft needs preprocess" in told
    assert not project.folder("alone").logs.exists()


# -- two launchers, no permission, no room --------------------------------------------------------------------------


def test_a_second_launcher_of_one_run_is_refused(project: Project) -> None:
    folder = project.folder("taken")
    with folder.locked():
        told = project.refuses("run", "smoke", "--via", "local", "--run-name", "taken")
        assert f"pid {os.getpid()} on {os.uname().nodename}" in told and "--run-name" in told
    assert {path.name for path in folder.logs.iterdir()} == {".lock"}


def test_a_folder_that_cannot_be_made_is_named(project: Project) -> None:
    blocked = project.folder("blocked").logs
    blocked.parent.mkdir(exist_ok=True)
    blocked.write_text("a file where a folder should be", encoding="utf-8")
    told = project.refuses("run", "smoke", "--via", "local", "--run-name", "blocked")
    assert "cannot write" in told and str(blocked) in told and "permissions" in told
    blocked.unlink()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 KiB of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("cannot mount a small disk here: root and mount are needed")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_run_on_a_full_disk_ends_with_an_error_and_no_marker(project: Project, small_disk: Path) -> None:
    site = project.home / "configs" / "cluster.yaml"
    site.write_text(f"output_root: {json.dumps(str(small_disk))}\n", encoding="utf-8")
    (small_disk / "filler").write_bytes(bytes(200 * 1024))
    try:
        code, _, err = project.call("run", "smoke", "--via", "local", "--run-name", "full", "--until", "preprocess")
    finally:
        site.unlink()
    assert code in (1, 2), err
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: ") and " -> " in last and "Traceback" not in err, err
    assert "No space left" in err, err
    assert not list(small_disk.rglob("done.json"))


def test_a_disk_that_is_full_at_the_marker_leaves_none(small_disk: Path) -> None:
    run = RunDir(small_disk, "full")
    run.write_state("sft", state="running")
    output = run.model("sft") / "weights"
    output.parent.mkdir(parents=True)
    with pytest.raises(OSError, match="No space left"), output.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    with pytest.raises(UserError, match=r"cannot write: 'No space left on device' .* -> make room or set output_root"):
        run.mark_done("sft", "f" * 64, [output])
    assert run.done("sft") is None
    assert {path.name for path in run.stage("sft").iterdir()} == {"state.json"}


# -- plans write nothing --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [("run", "smoke", "--dry-run"), ("plan", "smoke"), ("plan", "phi3")])
def test_a_plan_writes_nothing(project: Project, words: tuple[str, ...]) -> None:
    before = project.files()
    told = project.works(*words)
    assert "nothing was written or submitted" in told and "sbatch --parsable" in told and "#SBATCH --job-name" in told
    cache = ("data", "data/cache", "data/cache/fit")
    assert {name for name in project.files() - before if name not in cache and not name.startswith(cache[-1])} == set()


def test_a_plan_is_json_when_asked(project: Project) -> None:
    for words in (("plan", "phi3", "--json"), ("run", "phi3", "--dry-run", "--json")):
        plan = json.loads(project.works(*words))
        assert plan["run"] == "phi3"
        assert [each["stage"] for each in plan["stages"]] == ["preprocess", "sft", "grpo", "evaluate"]
        sft = plan["stages"][1]
        assert sft["batch"] == {"micro": 2, "accumulation": 8}
        assert sft["needs"] == ["preprocess"] and "--dependency=afterok:" in sft["command"]
        assert sft["script"].startswith("#!/bin/bash\n")
        assert sft["fit"]["fits"] is None and sft["fit"]["total_bytes"] > sft["fit"]["bytes"]["weights"] > 2e9
        assert plan["stages"][0]["fit"] is None


# -- a run --------------------------------------------------------------------------------------------------------


def test_status_of_a_run(project: Project, prepared: str) -> None:
    states = {each["stage"]: each for each in json.loads(project.works("status", prepared, "--json"))["stages"]}
    assert {name: each["state"] for name, each in states.items()} == {
        "preprocess": "done",
        "sft": "not started",
        "grpo": "not started",
        "evaluate": "not started",
    }
    assert states["preprocess"]["attempt"] == 1
    assert "not started" in project.works("status", prepared)


def test_logs_of_a_run(project: Project, prepared: str) -> None:
    text = project.folder(prepared).latest_log("preprocess").read_text(encoding="utf-8")
    assert project.works("logs", prepared).strip() == text.strip()
    assert project.works("logs", prepared, "preprocess").strip() == text.strip()
    assert "no log yet" in project.refuses("logs", prepared, "sft", code=3)
    assert "did you mean 'sft'?" in project.refuses("logs", prepared, "sftt")


def test_report_and_cancel_of_a_run_without_results(project: Project, prepared: str) -> None:
    assert "report: " in project.works("report", prepared)
    assert project.folder(prepared).report.is_file()
    assert "nothing of this run is queued or running" in project.works("cancel", prepared)


def test_a_finished_stage_is_skipped_and_never_overwritten(project: Project, prepared: str) -> None:
    words = ("run", "smoke", *SHORT, "--via", "local", "--run-name", prepared, "--until", "preprocess")
    marker = project.folder(prepared).stage("preprocess") / "done.json"
    before = marker.read_bytes()
    assert "skip  preprocess: done " in project.works(*words)
    told = project.refuses(*words, "seed=2")
    assert all(word in told for word in ("--replace", "--run-name", "--fresh", "preprocess")), told
    assert marker.read_bytes() == before


def test_a_plan_for_a_fresh_start_makes_all_anew(project: Project, prepared: str) -> None:
    before = project.files()
    words = ("run", "smoke", *SHORT, "seed=2", "--run-name", prepared, "--fresh", "--dry-run", "--json")
    assert [each["action"] for each in json.loads(project.works(*words))["stages"]] == ["run"] * 4
    assert project.files() == before


def test_a_mistake_with_fresh_deletes_nothing(project: Project, prepared: str) -> None:
    before = project.files()
    told = project.refuses("run", "smoke", "sft.global_batch_size=0", "--run-name", prepared, "--fresh")
    assert "global_batch_size" in told
    told = project.refuses("run", "smoke", "data.source=./no.csv", "--run-name", prepared, "--fresh")
    assert "no such data file" in told
    assert project.files() == before


def test_fresh_lists_and_deletes_only_the_runs_own_folders(project: Project, prepared: str) -> None:
    own = project.folder("fresh")
    others = [own.root / "models" / "fresh2_sft_model" / "x", own.root / "data" / "processed" / "x" / "x"]
    mine = [own.model("sft") / "x", own.model("base") / "x", own.results / "x", own.logs / "sft" / "x"]
    for path in [*others, *mine]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x", encoding="utf-8")
    words = ("run", "smoke", *SHORT, "--via", "local", "--run-name", "fresh", "--until", "preprocess", "--fresh")
    told = project.works(*words)
    listed = [line.removeprefix("deleting ") for line in told.splitlines() if line.startswith("deleting ")]
    assert sorted(listed) == sorted(map(str, [own.logs, own.results, own.model("sft"), own.model("base")]))
    assert all(path.is_file() for path in others)
    assert not any(path.exists() for path in mine)
    assert project.folder(prepared).done("preprocess") and own.done("preprocess")


@pytest.mark.training
def test_a_failing_stage_is_exit_code_1_and_names_its_log(project: Project) -> None:
    words = ("run", "smoke", *SHORT, "sft.lr_scheduler_type=nonsense", "--via", "local", "--run-name", "failing")
    code, out, err = project.call(*words)
    assert code == 1, out + err
    log = project.folder("failing").latest_log("sft")
    assert err.startswith("error: stage sft failed: ") and str(log) in err and " -> " in err
    assert "nonsense" in err and "nonsense" in log.read_text(encoding="utf-8")
    states = {each["stage"]: each for each in json.loads(project.works("status", "failing", "--json"))["stages"]}
    assert [states[name]["state"] for name in ("preprocess", "sft")] == ["done", "failed"]
    assert states["grpo"]["attempt"] is None
    assert project.folder("failing").done("sft") is None


# -- Ctrl-C -----------------------------------------------------------------------------------------------------


def wait_until(test: Callable[[], bool], what: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not test():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def processes_of(home: Path, run: str) -> list[int]:
    """Living processes whose command line names the run's folder of logs in this copy."""
    wanted = str(home / "logs" / run).encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if wanted in (entry / "cmdline").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:  # it ended meanwhile
                continue
    return found


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", pytest.param("SIGHUP", marks=pytest.mark.long)])
def test_ctrl_c_or_a_lost_connection_ends_all_processes_and_a_later_run_goes_on(project: Project, name: str) -> None:
    stopped = f"stopped-{name}"
    run = project.folder(stopped)
    rows = f"data.rows.sft={30000 + signal.Signals[name]}"  # no other run made this data set, in some seconds
    words = ("run", "smoke", *SHORT, rows, "--via", "local", "--run-name", stopped, "--until", "preprocess")
    child = project.start(*words)
    wait_until(lambda: run.state("preprocess").get("state") == "running", "the stage is at work")
    wait_until(lambda: len(processes_of(project.home, stopped)) >= 2, "the stage's own process starts")
    os.kill(child.pid, signal.Signals[name])
    _, err = child.communicate(timeout=60)
    assert child.returncode == 130, err
    assert err.splitlines()[-1] == "interrupted"
    assert processes_of(project.home, stopped) == []
    assert run.state("preprocess")["state"] == "interrupted" and run.done("preprocess") is None
    assert "interrupted" in project.works("status", stopped)
    project.works(*words)
    assert run.state("preprocess") | {"state": "done", "attempt": 2} == run.state("preprocess")
    assert run.done("preprocess")


def test_submitit_without_slurm_runs_the_stages_in_order(project: Project) -> None:
    words = ("run", "smoke", "--run-name", "submitit-here", "--via", "submitit", "--until")
    project.works(*words, "preprocess")
    broken = project.refuses(*words, "sft", "sft.lr_scheduler_type=nonsense", code=1)
    assert "stage sft failed" in broken and "nonsense" in broken


def test_a_broken_teacher_file_is_told_before_anything_is_submitted(project: Project) -> None:
    file = project.home / "teacher.jsonl"
    file.write_text('{"header": {}}\n{"completion": 3}\n', encoding="utf-8")
    told = project.refuses("run", "smoke", "--dry-run", "data.completions=teacher", f"data.teacher={file}", code=2)
    assert "teacher.jsonl" in told and "line 2" in told
