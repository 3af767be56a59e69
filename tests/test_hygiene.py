"""What a submission carries along: every value of the user's, nothing of an enclosing job, no secret on disk."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Slurm
from launching import Project

from pipeline.cluster import ClusterFile
from pipeline.errors import UserError
from pipeline.settings import validate
from pipeline.submit.slurm import environment
from pipeline.training.launchers import free_port

ODD = "'\"`$\\,;:=#&|<>(){}[]*?!~%@^ \t\n\r-+./aZ09éß因果\N{ROCKET}\u2028\x85\x7f"
"""Characters that shells, YAML, sbatch and JSON each treat in ways of their own."""
DUMP = """\
import json, os
recipe, _ = run.read_resolved()
found = {"values": recipe.sections["sft"]}
ours = ("FUZZ", "SLURM", "SBATCH", "RANK", "MASTER")
found["environment"] = {k: v for k, v in os.environ.items() if k.startswith(ours)}
(run.logs / "dump.json").write_text(json.dumps(found), encoding="utf-8")
"""
SECRETS = {
    "WANDB_API_KEY": "planted-3b1f6d9c7a",
    "HF_TOKEN": "hf_planted_9e8d7c6b5a",
    "MY_PASSWORD": "planted-pass-1a2b",
}


@pytest.fixture(scope="module")
def project(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    yield Project(tmp_path_factory.mktemp("hygiene") / "a 'quoted\" $folder", slurm)


def fuzzed(count: int, seed: int) -> list[str]:
    """Random texts of odd characters, and the classical traps."""
    chance = random.Random(seed)
    traps = [
        "",
        "null",
        "true",
        "1e-5",
        "0x1F",
        "~",
        "-n",
        "$(id)",
        "`id`",
        "${HOME}",
        "a,b",
        "a=b=c",
        "\n",
        "%j",
        "x" * 500,
    ]
    return traps + ["".join(chance.choices(ODD, k=chance.randint(1, 24))) for _ in range(count - len(traps))]


def quoted(text: str) -> str:
    """A text as YAML reads it back in one line."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in escaped) + '"'


@pytest.mark.slurm
def test_500_odd_values_reach_the_stage_byte_by_byte(project: Project) -> None:
    """From the command line through the resolved recipe, and from the cluster file through the job's environment."""
    values = {f"v{number}": text for number, text in enumerate(fuzzed(500, seed=17))}
    variables = {f"FUZZ{number}": text for number, text in enumerate(fuzzed(200, seed=18))}
    site = project.home / "configs" / "cluster.yaml"
    lines = [f"{name}: {quoted(text)}" for name, text in variables.items()]
    site.write_text("environment: {" + ", ".join(lines) + "}\n", encoding="utf-8")
    project.order("fuzzed", "preprocess", DUMP)
    override = "sft.dataset_kwargs={" + ", ".join(f"{key}: {quoted(text)}" for key, text in values.items()) + "}"
    try:
        project.run("fuzzed", override, "--until", "preprocess")
    finally:
        site.unlink()
    assert project.slurm.wait(project.jobs("fuzzed")["preprocess"], seconds=60) == ["COMPLETED"]
    found = json.loads((project.folder("fuzzed").logs / "dump.json").read_text(encoding="utf-8"))
    assert found["values"]["dataset_kwargs"] == values
    assert {key: text for key, text in found["environment"].items() if key.startswith("FUZZ")} == variables


@pytest.mark.slurm
def test_a_run_can_be_submitted_from_inside_a_job(project: Project, tmp_path: Path) -> None:
    """The outer job's SLURM_MEM_PER_CPU excludes the inner --mem; its GPUs, ranks and options are not the inner's."""
    project.order("nested", "preprocess", DUMP)
    outer = tmp_path / "outer.sh"
    outer.write_text(
        "#!/bin/bash\n"
        "export SBATCH_TIMELIMIT=nonsense SBATCH_PARTITION=nonsense SBATCH_HOLD=1 RANK=3 MASTER_PORT=29500\n"
        f"cd {json.dumps(str(project.home)).replace('$', chr(92) + '$')}\n"
        ".venv/bin/python -m pipeline run smoke --run-name nested --via slurm\n"
    )
    size = ["--mem-per-cpu=200M", "--cpus-per-task=3", "--gres=gpu:2", "--time=20"]
    job = project.slurm.submit(*size, f"--output={tmp_path}/out", str(outer), cwd=tmp_path)
    assert project.slurm.wait(job, seconds=60) == ["COMPLETED"], (tmp_path / "out").read_text()
    jobs = project.jobs("nested")
    assert project.slurm.wait(*jobs.values(), seconds=60) == ["COMPLETED"] * 4
    found = json.loads((project.folder("nested").logs / "dump.json").read_text())["environment"]
    assert found["SLURM_JOB_ID"] == jobs["preprocess"] and found["SLURM_CPUS_PER_TASK"] == "1"
    assert not [name for name in found if name.startswith(("SBATCH", "RANK", "MASTER")) or name == "SLURM_MEM_PER_CPU"]


@pytest.mark.slurm
@pytest.mark.parametrize("via", ["slurm", pytest.param("submitit", marks=pytest.mark.long)])
def test_a_secret_of_the_environment_stands_in_no_file(project: Project, via: str) -> None:
    name = f"secret-{via}"
    project.order(name, "preprocess", "import os; assert os.environ['HF_TOKEN'].startswith('hf_planted')")
    project.call("run", "smoke", "--run-name", name, "--via", via, env=SECRETS)
    assert project.slurm.wait(*project.jobs(name).values(), seconds=90) == ["COMPLETED"] * 4
    files = [path for path in project.home.rglob("*") if path.is_file()]
    files = [path for path in files if not {".venv", "tests"} & set(path.relative_to(project.home).parts)]
    assert any(name in path.parts for path in files)
    texts = {path: path.read_bytes() for path in files}
    assert not [path for path, text in texts.items() if any(secret.encode() in text for secret in SECRETS.values())]


@pytest.mark.parametrize("name", ["WANDB_API_KEY", "HF_TOKEN", "my_password", "AWS_SECRET_ACCESS_KEY"])
def test_the_cluster_file_refuses_secrets(name: str) -> None:
    with pytest.raises(UserError, match="looks like a secret"):
        validate(ClusterFile, {"environment": {name: "x"}}, "cluster.yaml")


def test_what_an_enclosing_job_left_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    outer = {
        "SLURM_JOB_ID": "7", "SLURM_MEM_PER_CPU": "1", "SBATCH_ACCOUNT": "a", "SBATCH_EXPORT": "NONE", "RANK": "1",
        "TORCHELASTIC_RUN_ID": "x", "CUDA_VISIBLE_DEVICES": "3", "RLC_HOME": "/x", "TMPDIR": "/job", "PMIX_RANK": "1",
    }  # fmt: skip
    for key, value in {**outer, "SLURM_CONF": "/conf", "WANDB_PROJECT": "kept"}.items():
        monkeypatch.setenv(key, value)
    inside = environment()
    assert not set(outer) & set(inside)
    assert inside["SLURM_CONF"] == "/conf" and inside["WANDB_PROJECT"] == "kept"
    monkeypatch.delenv("SLURM_JOB_ID")
    outside = environment()
    assert outside["SBATCH_ACCOUNT"] == "a" and outside["TMPDIR"] == "/job" and "SBATCH_EXPORT" not in outside


def test_ports_are_free_and_below_the_outgoing_ones() -> None:
    import socket

    ports = {free_port() for _ in range(20)}
    assert len(ports) > 1 and all(20000 <= port < 32000 for port in ports)
    for port in ports:
        with socket.socket() as trial:
            trial.bind(("", port))
