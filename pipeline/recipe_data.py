"""The `data` section of a recipe: which rows, how they are worded, what the model learns to say."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.recipe_questions import Part, TemplateName
from pipeline.settings import Count, Positive, Section, Share


class Graphs(Section):
    """How DAGs above six variables are drawn (to six all of them are known)."""

    family: Literal["erdos-renyi", "scale-free"] = "erdos-renyi"
    degree: Annotated[float, Field(gt=0)] = 2.5
    """Mean number of neighbours of a variable."""
    premises: Positive = 1000
    """Different equivalence classes that a set has on one number of variables."""


class Data(Section):
    """Which rows, how they are put to the model, and how many of them go where."""

    source: str = "generated"
    """`generated`, a CSV file with the released columns (split here by equivalence class), a folder with train, dev and
    test files (`corr2cause generate` makes the published ones), or a hub id such as causal-nlp/corr2cause. For other
    tasks (docs/tasks.md) their hub id, or a file or folder in the published format; each has its own default."""
    revision: str | None = None
    """Branch, tag or commit of a hub data set; null: main. `prefetch` pins it to a commit."""
    min_variables: Annotated[int, Field(ge=2, le=24)] = 2
    max_variables: Annotated[int, Field(ge=2, le=24)] = 5
    """Rows with fewer or more variables are left out."""
    graphs: Graphs = Graphs()
    labels: Literal["released", "corrected", "clean"] = "corrected"
    """`released` keeps the labels of the data set; `corrected` computes them anew by its own definitions, without its
    bugs; `clean` also leaves out rows whose premise no DAG satisfies. Generated rows are always clean."""
    prompt: Literal["default", "paper"] = "default"
    completions: Literal["trace", "short", "answer", "mixed", "teacher"] = "trace"
    """What SFT learns to say: the engine's reasoning, a short one, the answer alone, for half of the rows (at random)
    the reasoning and for half the answer alone, or a teacher's right answers."""
    teacher: str | None = None
    """For completions `teacher`: a prediction file. Its rows are the SFT rows; `balance` does not apply to them."""
    relabel: bool | None = None
    """Random letters for the variables, which takes the order of letters away as a shortcut. null: generated rows get
    them, rows of a source keep theirs. Dev and test rows of a source always keep theirs."""
    paraphrase: bool = False
    """Word generated premises and hypotheses in two ways, at random, and name the two variables that may have a
    collider or confounder in either order: the second edition (v2) always names the first letter first, v1 does not."""
    refactorize: Share = 0.0
    """Share of generated rows whose variables are called Z, Y, X, ... as in the published refactorized set."""
    balance: Annotated[float, Field(gt=0, lt=1)] | None = 0.5
    """Share of valid rows among training rows; null keeps the natural share (a sixth), as dev and test rows do."""
    rows: dict[str, Count | None] = Field(default_factory=dict)
    """Rows for each training stage by its name, and for `dev` and `test`; null takes all there are."""
    template: TemplateName | None = None
    """Of tasks other than corr2cause: the wording of prompts and final answers; null: the usual one of the task."""
    max_samples: Positive | None = None
    """Of tasks other than corr2cause: most rows of a training stage that `rows` does not name."""
    parts: dict[str, Part] = Field(default_factory=dict)
    """Of tasks other than corr2cause: rows of a part (a training stage, `dev`, `test`) that come from elsewhere."""

    def keys_of_other_tasks(self, questions: bool) -> list[str]:
        """Keys that have a value and mean nothing to tasks of published questions, or else to corr2cause."""
        shared, of_questions = {"source", "rows", "revision"}, {"template", "max_samples", "parts"}
        meant = shared | (of_questions if questions else type(self).model_fields.keys() - of_questions)
        default = type(self)()
        return [
            key for key in type(self).model_fields if key not in meant and getattr(self, key) != getattr(default, key)
        ]

    @model_validator(mode="after")
    def _range(self) -> Data:
        if self.min_variables > self.max_variables:
            raise ValueError(f"data.min_variables {self.min_variables} is above max_variables {self.max_variables}")
        if (self.completions == "teacher") != (self.teacher is not None):
            raise ValueError("data.completions: teacher and data.teacher (its prediction file) go together")
        if self.source == "generated" and self.labels == "released":
            raise ValueError("data.labels released are those of a data set: generated rows have corrected ones")
        return self
