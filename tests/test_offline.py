"""Models and data come from the hub beforehand, pinned; jobs run without a network and leave the home folder alone."""

from __future__ import annotations

import csv
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from shutil import which

import pytest
from hub_server import Hub, serving
from test_cli import SHORT, Project
from test_slurm_dag import copy_project

from pipeline.load import load_recipe
from pipeline.recipe import Recipe
from pipeline.recipe_data import Data
from pipeline.run import HOME
from pipeline.tasks.generated import generate

MODEL, DATA = "tiny-org/tiny-model", "tiny-org/tiny-rows"
FROM_HUB = [f"model.base={MODEL}", "model.scratch=null", f"data.source={DATA}", *SHORT]


def smoke() -> Recipe:
    return load_recipe(HOME / "configs" / "smoke.yaml")


def make_model(folder: Path, seed: int) -> None:
    """A tiny random model as it lies on the hub, with files that no stage reads."""
    from pipeline.training.scratch import save_scratch

    settings = smoke().model.scratch
    assert settings is not None
    settings = settings.model_copy(update={"max_position_embeddings": 1024})  # the longest row has 527 tokens
    texts = [row.input for row in generate(Data(max_variables=4, rows={"sft": 200}), "sft", 5, 0)]
    save_scratch(settings, texts, folder, seed)
    (folder / "README.md").write_text("a model\n")
    (folder / "pytorch_model.bin").write_bytes(b"the same weights in another format")


def make_rows(folder: Path) -> None:
    """Released-format rows of all three sets."""
    folder.mkdir()
    for index, (name, part) in enumerate((("train", "sft"), ("validation", "dev"), ("test", "test"))):
        rows = generate(Data(max_variables=4, rows={part: 60}), part, 5, index)
        with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["input", "label", "num_variables", "template"])
            writer.writerows([row.input, row.label, row.num_variables, row.template] for row in rows)


class Offline(Project):
    """A project whose command line may take long: on a busy machine the smoke run takes minutes."""

    inside: tuple[str, ...] = ()
    """The command that the command line runs in."""

    def call(self, *words: str) -> tuple[int, str, str]:
        command = [*self.inside, ".venv/bin/python", "-m", "pipeline", *words]
        done = subprocess.run(
            command, cwd=self.home, env=self.env, capture_output=True, text=True, timeout=900, check=False
        )
        return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    folder = tmp_path_factory.mktemp("hub")
    make_model(folder / "model", 1)
    make_rows(folder / "rows")
    found = Hub()
    found.push(f"models/{MODEL}", folder / "model", 1)
    found.push(f"datasets/{DATA}", folder / "rows", 2)
    with serving(found):
        yield found


@pytest.fixture
def project(tmp_path: Path, hub: Hub) -> Offline:
    """A copy of the project whose home folder is empty and whose caches lie elsewhere."""
    made = Offline(copy_project(tmp_path / "a 'quoted\" $folder"))
    (tmp_path / "home").mkdir()
    for name in [name for name in made.env if name.startswith(("HF_", "XDG_", "WANDB_", "TRITON_", "TORCH_"))]:
        del made.env[name]
    made.env |= {"HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub.url}
    cache = json.dumps(str(tmp_path / "cache"))
    (made.home / "configs" / "cluster.yaml").write_text(f"cache: {cache}\n", encoding="utf-8")
    return made


def size_of(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())


def test_a_recipe_is_refused_before_the_queue_until_its_model_and_data_are_there(project: Offline, hub: Hub) -> None:
    asked = len(hub.requests)
    code, _, err = project.call("run", "smoke", *FROM_HUB, "--via", "local")
    lines = err.splitlines()
    assert code == 2 and len(lines) == 2, err
    for line, name, key in zip(lines, (MODEL, DATA), ("model.base", "data.source"), strict=True):
        assert name in line and key in line and "cache" in line and "`prefetch smoke`" in line
    assert len(hub.requests) == asked and not (project.home / "logs" / "smoke").exists()


@pytest.fixture
def without_network() -> tuple[str, ...]:
    """A command that runs another one where there is nothing but loopback."""
    for user in ([], ["--map-root-user"]):
        command = ("unshare", "--net", *user, "sh", "-c", 'ip link set lo up && exec "$@"', "sh")
        if which("unshare") and which("ip") and subprocess.run([*command, "true"], check=False).returncode == 0:
            return command
    pytest.skip("unshare --net is not permitted here: no test without a network")


@pytest.mark.training
def test_the_pipeline_runs_without_network_on_the_commits_that_prefetch_brought_and_leaves_home_alone(
    project: Offline, hub: Hub, tmp_path: Path, without_network: tuple[str, ...]
) -> None:
    told = json.loads(project.works("prefetch", "smoke", *FROM_HUB, "--json"))
    commits = {each["name"]: each["commit"] for each in told["items"]}
    main = hub.branches[f"models/{MODEL}"]["main"]
    assert commits == {MODEL: main, DATA: hub.branches[f"datasets/{DATA}"]["main"]}
    snapshot = Path(told["items"][0]["folder"])
    assert snapshot.is_relative_to(tmp_path / "cache") and (snapshot / "model.safetensors").is_file()
    assert not (snapshot / "pytorch_model.bin").exists() and not (snapshot / "README.md").exists()
    project.inside = without_network
    assert "does not answer" in project.refuses("prefetch", "smoke", *FROM_HUB)
    project.works("run", "smoke", *FROM_HUB, "grpo.beta=0.1", "--via", "local")
    recipe, _ = project.folder("smoke").read_resolved()
    assert (recipe.model.revision, recipe.data.revision) == (commits[MODEL], commits[DATA])
    comparison = json.loads(project.folder("smoke").comparison.read_text())
    assert list(comparison["models"]) == ["base", "sft", "grpo"]
    assert size_of(tmp_path / "home") < 1e6, list((tmp_path / "home").rglob("*"))
    project.inside = ()
    make_model(tmp_path / "newer", 2)
    newer = hub.push(f"models/{MODEL}", tmp_path / "newer", 3)
    try:
        assert "nothing to do" in project.works("run", "smoke", *FROM_HUB, "grpo.beta=0.1", "--via", "local")
        assert newer in project.works("prefetch", "smoke", *FROM_HUB)
        words = ["run", "smoke", *FROM_HUB, "grpo.beta=0.1", "--via", "local"]
        assert "other settings" in project.refuses(*words)
        assert "nothing to do" in project.works(*words, f"model.revision={main}", f"data.revision={commits[DATA]}")
    finally:
        hub.branches[f"models/{MODEL}"]["main"] = main


def test_a_file_that_went_from_the_cache_is_named(project: Offline) -> None:
    told = json.loads(project.works("prefetch", "smoke", *FROM_HUB, "--json"))
    (Path(told["items"][0]["folder"]) / "model.safetensors").unlink()
    err = project.refuses("run", "smoke", *FROM_HUB, "--via", "local")
    assert "not whole" in err and "model.safetensors" in err and "`prefetch smoke`" in err
    project.works("prefetch", "smoke", *FROM_HUB)
    told = json.loads(project.works("plan", "smoke", *FROM_HUB, "--json"))
    assert {each["action"] for each in told["stages"]} == {"run"}


def test_a_damaged_file_is_not_kept(project: Offline, hub: Hub, tmp_path: Path) -> None:
    hub.spoiled.add("model.safetensors")
    try:
        err = project.refuses("prefetch", "smoke", *FROM_HUB)
    finally:
        hub.spoiled.clear()
    assert "not what the hub says" in err and "model.safetensors" in err
    assert not list((tmp_path / "cache").rglob("model.safetensors"))
    project.works("prefetch", "smoke", *FROM_HUB)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([f"model.base={MODEL}x"], ["the hub refuses", f"{MODEL}x"]),
        (["model.revision=no-branch"], ["the hub refuses", "no-branch"]),
        (["data.source=tiny-org/nothing"], ["the hub refuses", "tiny-org/nothing", "data.source"]),
    ],
)
def test_what_the_hub_does_not_have_is_named(project: Offline, words: list[str], told: list[str]) -> None:
    err = project.refuses("prefetch", "smoke", *FROM_HUB, *words)
    assert all(word in err for word in told), err


def test_a_hub_that_does_not_answer_is_named(project: Offline) -> None:
    project.env["HF_ENDPOINT"] = "http://127.0.0.1:9"
    err = project.refuses("prefetch", "smoke", *FROM_HUB)
    assert "does not answer" in err and "127.0.0.1:9" in err and MODEL in err


def test_a_recipe_without_the_hub_needs_no_prefetch(project: Offline) -> None:
    assert "takes nothing from the hub" in project.works("prefetch", "smoke")
