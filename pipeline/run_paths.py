"""Every path of a run; no other module joins them."""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import UserError
from pipeline.recipe import NAME_PATTERN


def meeting_file(root: Path, key: str) -> Path:
    """Where the processes of one launch by hand meet, before all but the first know which run they are of."""
    return root / "logs" / f".ranks-{key}.json"


class RunPaths:
    """The paths of one run: its name, and the folder under which it writes (the project, or the site's output_root)."""

    def __init__(self, root: Path, name: str) -> None:
        if not NAME_PATTERN.fullmatch(name):
            raise UserError(
                "not a run name", value=name, where="--run-name", do="use letters, digits, . _ - (at most 64)"
            )
        self.root = root
        self.name = name

    @property
    def logs(self) -> Path:
        """Scripts, resolved recipe, attempts and records."""
        return self.root / "logs" / self.name

    @property
    def resolved(self) -> Path:
        """The recipe with all overrides: what the jobs read."""
        return self.logs / "resolved.yaml"

    @property
    def environment(self) -> Path:
        """Shell lines of the site (modules, variables) that the job body sources."""
        return self.logs / "environment.sh"

    @property
    def results(self) -> Path:
        """comparison.json, report.html, predictions/."""
        return self.root / "evaluation_results" / self.name

    @property
    def comparison(self) -> Path:
        """The table of results as JSON."""
        return self.results / "comparison.json"

    @property
    def robustness(self) -> Path:
        """What injected instructions do to the models of the run, as JSON."""
        return self.results / "robustness.json"

    def attacked(self, model: str) -> Path:
        """What one model answered to attacks and benign inputs."""
        return self.results / "robustness" / f"{model}.jsonl"

    def attacked_files(self) -> list[Path]:
        """What all models answered to attacks."""
        return sorted((self.results / "robustness").glob("*.jsonl"))

    @property
    def report(self) -> Path:
        """The page of results."""
        return self.results / "report.html"

    def predictions(self, model: str, test: str = "") -> Path:
        """Prediction file of one model on the main test set, or on the one of this name."""
        return self.results / "predictions" / test / f"{model}.jsonl"

    def partial_predictions(self, model: str, test: str = "") -> Path:
        """The answers of one model that an interrupted evaluation has so far."""
        return self.predictions(model, test).with_suffix(".partial")

    def predictions_bytes(self) -> int:
        """Length of all files of predictions and of answers to attacks, unfinished ones too."""
        folders = (self.results / "predictions", self.results / "robustness")
        return sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())

    def prediction_files(self, test: str = "") -> list[Path]:
        """All prediction files on a test set."""
        return sorted((self.results / "predictions" / test).glob("*.jsonl"))

    @property
    def slurm_output(self) -> Path:
        """Folder of Slurm's own output files."""
        return self.root / "logs"

    def local_output(self, stage: str) -> Path:
        """Output of a stage's job body on this machine, beside Slurm's files of the same kind."""
        return self.slurm_output / f"{stage}_{self.name}_local.out"

    @property
    def submitit(self) -> Path:
        """Folder of submitit's own files."""
        return self.logs / "submitit"

    def code(self, code_hash: str) -> Path:
        """The copy of the code that jobs of this run were submitted with."""
        return self.logs / "code" / code_hash

    def stage(self, stage: str) -> Path:
        """A stage's folder of logs and records."""
        return self.logs / stage

    def script(self, stage: str) -> Path:
        """The sbatch script that is submitted for a stage."""
        return self.stage(stage) / f"{stage}.slurm"

    def metrics(self, stage: str) -> Path:
        """JSON lines of a stage's metrics: status, report, guard and planner read them."""
        return self.stage(stage) / "metrics.jsonl"

    def tensorboard(self, stage: str) -> Path:
        """Folder of a training stage's TensorBoard events."""
        return self.stage(stage) / "tensorboard"

    def checkpoints(self, stage: str) -> Path:
        """Folder of a training stage's checkpoints."""
        return self.stage(stage) / "checkpoints"

    def samples(self, stage: str, part: str, rank: int) -> Path:
        """Completions that one process of a stage sampled to make preference pairs of: JSON lines."""
        return self.stage(stage) / f"samples-{part}-{rank}.jsonl"

    def model(self, stage: str) -> Path:
        """Folder of the model that a stage makes; `base` is a scratch model before training."""
        return self.root / "models" / f"{self.name}_{stage}_model"

    def merged(self, stage: str) -> Path:
        """Folder of a stage's adapter folded into its base model."""
        return self.root / "models" / f"{self.name}_{stage}_merged"

    def dataset(self, key: str) -> Path:
        """A processed data set, keyed by content (the preprocess stage's fingerprint), shared by runs."""
        return self.root / "data" / "processed" / key

    def dataset_draft(self, key: str) -> Path:
        """Where this run makes a processed data set before it is whole and takes its place."""
        return self.root / "data" / "processed" / f".{key}.{self.name}"

    def cache(self, name: str) -> Path:
        """A cache folder that any run may use and anybody may delete."""
        return self.root / "data" / "cache" / name
