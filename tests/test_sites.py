"""`init` and `doctor` on sites of many kinds: the cluster file is taken by the site, or the fix is named."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster, unavailable
from conftest import NO_SLURM, Slurm
from launching import Project

from pipeline.cluster import load_cluster
from pipeline.submit.discover import minutes, parse_gres

DEBUG = "PartitionName=debug Nodes=ALL Default=YES"
FIRST = "PriorityTier=10 PreemptMode=OFF"
SMALL = "PartitionName=short Nodes=ALL MaxTime=1\nPartitionName=preempt Nodes=ALL PreemptMode=REQUEUE PriorityTier=1"
SHORT = "PartitionName=short Nodes=ALL MaxTime=1"
SACCTMGR = (
    ["add", "account", "lab"],
    ["add", "qos", "long"],
    ["add", "user", "root", "account=lab"],
    ["modify", "user", "root", "set", "qos+=long"],
    ["modify", "user", "root", "set", "maxjobs=3", "maxsubmitjobs=30"],
    ["modify", "qos", "normal", "set", "maxjobsperuser=5", "maxsubmitjobsperuser=20"],
)
SITES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "as it is": ({}, {"partition": None, "gpu_partition": None}, ""),
    "untyped gpus": ({"gres": "gpu"}, {"gpu_partition": None}, ""),
    "another gres name": ({"gres": "card:l4"}, {"gres": {"name": "card", "type": None}}, ""),
    "no gpus": ({"gpus": 0}, {"gpu_partition": None}, "no node here has a GPU"),
    "two gpus": ({"gpus": 1}, {}, "set resources.sft.gpus to at most 1"),
    "no default partition": (
        {"extra": "PartitionName=debug Nodes=ALL Default=NO\n" + SMALL}, {"partition": "debug"}, "",
    ),
    "a short default": (
        {"extra": f"{DEBUG} MaxTime=30 {FIRST}\nPartitionName=long Nodes=ALL MaxTime=2-0 {FIRST}"},
        {"partition": "long"}, "",
    ),
    "short only": (
        {"extra": f"{DEBUG} MaxTime=60\nPartitionName=preempt Nodes=ALL MaxTime=30\n{SHORT}"},
        {"gpu_partition": None, "cpu_max_time": "01:00:00", "gpu_max_time": "01:00:00"}, "",
    ),
    "an account is needed": (
        {"accounting": True, "extra": f"{DEBUG} {FIRST} AllowAccounts=lab,other"}, {"account": "lab"}, "",
    ),
    "little memory": (
        {"memory": 16_000, "cpus": 16}, {}, "set resources.sft.memory to at most 16000M",
    ),
    "a memory limit a cpu": (
        {"extra": f"{DEBUG} MaxMemPerCPU=1000\n{SMALL.replace('MaxTime=1', 'MaxTime=1 MaxMemPerCPU=1000')}"}, {}, "",
    ),
    "few cpus": ({"cpus": 4}, {}, "set resources.sft.cpus to at most 4"),
    "few cpus a job": (
        {"extra": f"{DEBUG} MaxCPUsPerNode=2"}, {}, "set cpu_partition in configs/cluster.yaml to preempt",
    ),
    "a default that is down": (
        {"extra": f"{DEBUG} State=DOWN\nPartitionName=main Nodes=ALL {FIRST}"},
        {"partition": "main"}, "",
    ),
    "requeue off by default": ({"extra": "JobRequeue=0"}, {"requeue": True}, ""),
    "memory is not counted": ({"extra": "SelectTypeParameters=CR_Core"}, {"memory": "mem"}, ""),
    "a qos is needed": (
        {"accounting": True, "extra": f"AccountingStorageEnforce=associations,qos\n{DEBUG} AllowQos=long"},
        {"qos": "long", "sweep_at_once": 4, "submit_limit": None}, "",
    ),
    "few jobs a user": (
        {"accounting": True, "extra": "AccountingStorageEnforce=associations,limits,qos"},
        {"sweep_at_once": 3, "submit_limit": 20}, "",
    ),
}  # fmt: skip
"""Name -> (the test cluster, what init must choose, a part of the fix that doctor must name for phi3, or empty)."""


@pytest.fixture(scope="module")
def home(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Project(tmp_path_factory.mktemp("sites") / "a 'quoted\" $folder", slurm).home


@pytest.fixture
def project(request: pytest.FixtureRequest, slurm_root: Path, home: Path) -> Iterator[Project]:
    """The project on one of the sites, without a cluster file."""
    facts = SITES[request.param][0]
    if reason := unavailable(accounting=facts.get("accounting", False)):
        pytest.skip(NO_SLURM + reason)
    cluster = Cluster(slurm_root / f"site{list(SITES).index(request.param)}", **{"nodes": 1, **facts})
    cluster.up()
    if cluster.accounting:
        for words in SACCTMGR:
            assert cluster.call("sacctmgr", "-i", *words).returncode == 0
    project = object.__new__(Project)
    project.home, project.slurm = home, Slurm(cluster)
    (home / "configs" / "cluster.yaml").unlink(missing_ok=True)
    yield project
    cluster.down()


@pytest.mark.slurm
@pytest.mark.parametrize("project", SITES, indirect=True)
def test_the_file_of_init_is_taken_or_doctor_names_the_fix(project: Project, request: pytest.FixtureRequest) -> None:
    name = request.node.callspec.params["project"]
    _, chosen, fix = SITES[name]
    project.call("init")
    path = project.home / "configs" / "cluster.yaml"
    written = load_cluster(path).model_dump()
    assert {key: written[key] for key in chosen} == chosen, path.read_text()
    found = project.json("doctor", "phi3", "--no-probe", code=2 if fix else 0)
    told = " ; ".join(each["fix"] for each in found["checks"])
    assert fix in told, found
    assert all(each["good"] or each["fix"] for each in found["checks"])
    if not fix:
        assert project.start("run", "smoke", "--run-name", f"site-{len(name)}", "--until", "preprocess").returncode == 0


@pytest.mark.slurm
@pytest.mark.parametrize("project", ["as it is"], indirect=True)
def test_doctor_mends_wrong_cluster_files(project: Project) -> None:
    """Each file has one mistake; the fix that is named must mend it."""
    path = project.home / "configs" / "cluster.yaml"
    for text, fix in {
        "partition: nonsense": "set partition in configs/cluster.yaml to one of: debug",
        "gpu_partition: short": "set gpu_partition in configs/cluster.yaml to debug",
        "gres: {name: card}": "set gres.name in configs/cluster.yaml to gpu",
        "gres: {type: h100}": "set gres.type in configs/cluster.yaml to one of: a100",
        "constraint: nonsense": "set constraint in configs/cluster.yaml",
    }.items():
        path.write_text(text + "\n")
        found = project.json("doctor", "phi3", "--no-probe", code=2)
        assert fix in " ; ".join(each["fix"] for each in found["checks"]), (text, found)
    path.unlink()


@pytest.mark.slurm
@pytest.mark.parametrize("project", ["as it is"], indirect=True)
def test_init_never_overwrites_unasked(project: Project) -> None:
    path = project.home / "configs" / "cluster.yaml"
    path.write_text("account: mine\n")
    assert "--force" in project.call("init", code=2)
    assert path.read_text() == "account: mine\n"
    assert "written" in project.call("init", "--force")
    text = path.read_text()
    assert "# " in text and "debug: 1 nodes of 64 CPUs, 585 GB; 8 x gpu:a100; no time limit; the default" in text
    path.unlink()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("gpu:a100:8(S:0-1)", {("gpu", "a100"): 8}),
        ("gpu:2,card:l4:1", {("gpu", ""): 2, ("card", "l4"): 1}),
        ("gpu:a100:2(S:0),gpu:a100:2(S:1)", {("gpu", "a100"): 4}),
        ("(null)", {}),
    ],
)
def test_gres_is_read(text: str, found: dict[tuple[str, str], int]) -> None:
    assert parse_gres(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [("UNLIMITED", None), ("00:01:00", 1), ("1-00:00:00", 1440), ("02:30:01", 151), ("30:00", 30), ("3-12", 5040)],
)
def test_time_limits_are_read(text: str, found: int | None) -> None:
    assert minutes(text) == found


@pytest.mark.slurm
@pytest.mark.parametrize("project", ["as it is"], indirect=True)
def test_the_probe_finds_a_node_good_or_names_what_it_lacks(project: Project) -> None:
    found = {each["name"].partition(": ")[2]: each for each in project.json("doctor", "smoke")["checks"]}
    wanted = ("Python", "GPUs", "shared files", "scratch", "room", "network")
    assert all(found[name]["good"] for name in wanted), found
    assert not list((project.home / "logs").glob("doctor-*"))
    path = project.home / "configs" / "cluster.yaml"
    path.write_text("scratch: /nowhere/at-all\n")
    told = project.call("doctor", "phi3", code=2)
    assert "set scratch in configs/cluster.yaml to a folder that exists on compute nodes" in told
    if not Path("/usr/bin/nvidia-smi").exists():  # the fake GPUs have no driver
        assert "no NVIDIA driver on" in told and "set gpu_partition and gres in configs/cluster.yaml" in told
    path.unlink()


@pytest.mark.slurm
def test_a_probe_that_cannot_start_says_why(slurm: Slurm, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cluster is full."""
    from pipeline.cluster import ClusterFile
    from pipeline.load import load_recipe, recipe_file
    from pipeline.run import HOME, RunDir
    from pipeline.submit import probe
    from pipeline.submit.plan import Choice, make_plan

    monkeypatch.setattr(probe, "PATIENCE", 3.0)
    for name, value in slurm.env.items():
        monkeypatch.setenv(name, value)
    taker = slurm.submit("-N2", "--exclusive", "--wrap", "sleep 600", cwd=home)
    slurm.wait_for(taker, "JobState", "RUNNING")
    plan = make_plan(load_recipe(recipe_file(HOME, "smoke")), RunDir(home, "x"), ClusterFile(), Choice())
    (check,) = probe.probe(plan)
    slurm.run("scancel", taker)
    assert check.good is None and "waits in the queue" in check.told and check.fix


@pytest.mark.slurm
def test_the_nodes_reduce_over_the_network(slurm: Slurm, home: Path) -> None:
    project = object.__new__(Project)
    project.home, project.slurm = home, slurm
    (home / "configs" / "cluster.yaml").unlink(missing_ok=True)
    recipe = home / "two.yaml"
    text = (home / "configs" / "smoke.yaml").read_text()
    recipe.write_text(text.replace("  sft: {time:", "  sft: {nodes: 2, launcher: torchrun, time:"))
    found = project.json("doctor", str(recipe))["checks"]
    told = [each["told"] for each in found if "all-reduce" in each["name"]]
    assert told == ["gloo over 2 nodes"] * 2
