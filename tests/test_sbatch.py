"""The sbatch scripts as whole texts, the site's flags and the site's shell lines."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from pipeline.cluster import ClusterFile, environment_script, load_cluster, memory_per_cpu, sbatch_flags
from pipeline.errors import UserError
from pipeline.load import load_recipe, recipe_file
from pipeline.recipe import Recipe, Resources
from pipeline.run import HOME
from pipeline.submit.render import RENDERED, render_all
from pipeline.submit.sbatch import evaluate_script, sbatch_lines, stage_script

GOLDEN = Path(__file__).parent / "golden"
CASES = [
    "preprocess_smoke", "sft_smoke", "grpo_smoke", "evaluate_smoke", "sft_phi3", "dpo_gsm8k-dpo", "ppo_math-ppo",
    "evaluate",
]  # fmt: skip
GPU = Resources(gpus=2, launcher="torchrun", cpus=8, memory="48G")
CPU = Resources(gpus=0, cpus=4, memory="16G")
HOSTILE = {
    "QUOTES": 'it\'s "so" `id`',
    "LINES": "first\nsecond\n\nlast\n",
    "DOLLAR": "$HOME ${PATH} $(id) \\$ \\\\ !!",
    "UTF8": "Größe 因果 \N{ROCKET}",
    "BLANKS": "  a\t b ; rm -rf x & # no comment *?[a] ~ ",
    "DASH": "-n",
    "EMPTY": "",
}


def recipe(name: str) -> Recipe:
    return load_recipe(recipe_file(HOME, name))


def script(case: str) -> str:
    stage, _, name = case.partition("_")
    return stage_script(recipe(name), name, stage) if name else evaluate_script()


@pytest.mark.parametrize("case", CASES)
def test_a_script_is_the_golden_text(case: str) -> None:
    golden = GOLDEN / f"{case}.slurm"
    if os.environ.get("UPDATE_GOLDEN") == "1":
        golden.write_text(script(case), encoding="utf-8")
    assert script(case) == golden.read_text(encoding="utf-8")


def test_no_golden_file_is_left_over() -> None:
    assert sorted(path.stem for path in GOLDEN.glob("*.slurm")) == sorted(CASES)


@pytest.mark.parametrize("case", CASES)
def test_the_same_stage_gives_the_same_bytes(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = script(case).encode()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TZ", "Pacific/Auckland")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert script(case).encode() == before


@pytest.mark.parametrize("case", CASES)
def test_a_script_holds_no_site_facts(case: str) -> None:
    text = script(case)
    for word in ("partition", "account", "qos", "constraint", "module ", "reservation", str(HOME), os.uname().nodename):
        assert word not in text, word
    for word in re.findall(r"(?<![\w.$}])/[\w./-]+", text):
        assert word == "/bin/bash", word


def test_the_gpus_and_the_memory_are_the_recipes() -> None:
    asked = recipe("phi3").resources["sft"]
    lines = stage_script(recipe("phi3"), "phi3", "sft").splitlines()
    assert f"#SBATCH --gres=gpu:{asked.gpus}" in lines and f"#SBATCH --mem={asked.memory}" in lines
    without = stage_script(recipe("phi3"), "phi3", "sft", memory=False)
    assert without.splitlines() == [line for line in lines if not line.startswith("#SBATCH --mem=")]
    assert "--gres" not in script("sft_smoke")


@pytest.mark.parametrize(
    ("time", "lead", "wanted"),
    [
        ("02:00:00", 120, 120),
        ("02:00:00", 600, 600),
        ("00:04:00", 120, 60),
        ("04:00", 120, 60),
        ("00:00:30", 120, 7),
        ("00:00:01", 120, 1),
        ("1-00:10", 90000, 21750),
        ("1-00:00:04", 90000, 21601),
    ],
)
def test_the_warning_leaves_most_of_the_time_for_work(time: str, lead: int, wanted: int) -> None:
    lines = sbatch_lines("x", Resources(time=time, stop_lead=lead))
    assert f"#SBATCH --signal=B:USR1@{wanted}" in lines
    assert "#SBATCH --requeue" in lines and "#SBATCH --open-mode=append" in lines


def test_the_checked_in_scripts_are_current() -> None:
    assert render_all(HOME, write=False) == []


def test_every_script_under_slurm_is_a_rendered_one() -> None:
    named = {f"{entry.name}_{name}" for name in RENDERED for entry in recipe(name).stages}
    assert {path.stem for path in (HOME / "slurm").glob("*.slurm")} == {"evaluate", *named}


@pytest.mark.parametrize(
    ("facts", "resources", "flags"),
    [
        ({}, GPU, ["--requeue"]),
        ({}, CPU, ["--requeue"]),
        ({"requeue": False}, CPU, ["--no-requeue"]),
        ({"kill_on_invalid_dep": True}, CPU, ["--requeue", "--kill-on-invalid-dep=yes"]),
        ({"partition": "p"}, GPU, ["--partition=p", "--requeue"]),
        ({"partition": "p"}, CPU, ["--partition=p", "--requeue"]),
        ({"partition": "p", "gpu_partition": "g"}, GPU, ["--partition=g", "--requeue"]),
        ({"partition": "p", "gpu_partition": "g"}, CPU, ["--partition=p", "--requeue"]),
        ({"partition": "p", "cpu_partition": "c"}, CPU, ["--partition=c", "--requeue"]),
        ({"cpu_partition": "c"}, GPU, ["--requeue"]),
        ({"account": "a", "qos": "q"}, CPU, ["--account=a", "--qos=q", "--requeue"]),
        ({"constraint": "x|y"}, GPU, ["--constraint=x|y", "--requeue"]),
        ({"constraint": "x|y"}, CPU, ["--requeue"]),
        ({"gres": {"type": "a100"}}, GPU, ["--gres=gpu:a100:2", "--requeue"]),
        ({"gres": {"type": "a100"}}, CPU, ["--requeue"]),
        ({"gres": {"name": "card"}}, GPU, ["--gres=card:2", "--requeue"]),
        ({"gres": {"name": "card", "type": "l4"}}, GPU, ["--gres=card:l4:2", "--requeue"]),
        ({"memory": "mem"}, GPU, ["--requeue"]),
        ({"memory": "none"}, GPU, ["--requeue"]),
        ({"memory": "mem-per-cpu"}, GPU, ["--mem-per-cpu=6144M", "--requeue"]),
        ({"memory": "mem-per-cpu"}, CPU, ["--mem-per-cpu=4096M", "--requeue"]),
    ],
)
def test_the_flags_carry_the_sites_facts(facts: dict[str, object], resources: Resources, flags: list[str]) -> None:
    assert sbatch_flags(ClusterFile.model_validate(facts), resources) == flags


@pytest.mark.parametrize(
    ("memory", "cpus", "each"), [("1G", 3, 342), ("1G", 4, 256), ("100M", 1, 100), ("1M", 8, 1), ("1T", 2, 524288)]
)
def test_memory_for_each_cpu_is_rounded_up(memory: str, cpus: int, each: int) -> None:
    assert memory_per_cpu(Resources(memory=memory, cpus=cpus)) == each


def sourced(file: Path, name: str, **env: str) -> bytes:
    """What bash holds in a variable after it sourced the file, under the job body's settings."""
    command = f'. {shlex.quote(str(file))}; printf %s "${name}"'
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", command], capture_output=True, check=True, env=env)
    assert done.stderr == b""
    return done.stdout


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("key", ["environment", "caches"])
def test_bash_reads_back_every_value_byte_by_byte(key: str, name: str, weird_tmp_path: Path) -> None:
    file = weird_tmp_path / "environment.sh"
    file.write_text(environment_script(ClusterFile.model_validate({key: HOSTILE})), encoding="utf-8")
    assert sourced(file, name, PATH=os.environ["PATH"]) == HOSTILE[name].encode()


def test_modules_and_scratch_are_quoted_and_come_first(weird_tmp_path: Path) -> None:
    modules = ["python/3.11", "it's; $odd"]
    facts = ClusterFile(modules=modules, scratch="/s/a 'b", environment={"MODULES": "seen"}, caches={"HOME_OF": "c"})
    file = weird_tmp_path / "environment.sh"
    file.write_text(environment_script(facts), encoding="utf-8")
    module = 'module() { printf "%s|" "$@"; }; export -f module; '
    command = f'{module} . {shlex.quote(str(file))}; printf %s "$TMPDIR $MODULES $HOME_OF"'
    told = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True).stdout
    assert told == "load|python/3.11|load|it's; $odd|/s/a 'b seen c"


def test_a_variable_of_the_site_wins_over_a_cache_and_scratch() -> None:
    facts = ClusterFile(scratch="/scratch", caches={"A": "cache"}, environment={"A": "own", "TMPDIR": "/own"})
    lines = environment_script(facts).splitlines()
    assert sorted(lines[1:]) == ["export A=own", "export TMPDIR=/own"]


def test_the_example_is_the_defaults() -> None:
    assert load_cluster(HOME / "configs" / "cluster.example.yaml") == ClusterFile()


def test_no_file_is_the_defaults(tmp_path: Path) -> None:
    assert load_cluster(tmp_path / "cluster.yaml") == ClusterFile()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("partitoin: gpu\n", ["partitoin", "partition"]),
        ("gres: {typ: a100}\n", ["gres.typ", "type"]),
        ("requeue: [1]\n", ["requeue", "[1]"]),
        ("memory: lots\n", ["memory", "lots", "mem-per-cpu"]),
        ("modules: cuda\n", ["modules", "cuda"]),
        ("environment: {NO-NAME: x}\n", ["environment", "NO-NAME"]),
        ("caches: {'a b': x}\n", ["caches", "a b"]),
    ],
)
def test_a_broken_cluster_file_is_named(text: str, words: list[str], tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as raised:
        load_cluster(path)
    for word in [*words, "cluster.yaml", " -> "]:
        assert word in str(raised.value), str(raised.value)


def test_every_error_of_a_cluster_file_is_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text("partitoin: gpu\nmemory: lots\n", encoding="utf-8")
    with pytest.raises(UserError) as raised:
        load_cluster(path)
    assert len(str(raised.value).splitlines()) == 2
