"""The exception tree: what is the user's to fix, what is a stage's failure, what is a bug.

    Exception
    └── PipelineError          has an exit code and a text of up to four parts
        ├── UserError          exit 2: a recipe, a file, a flag, the machine: the user can fix it
        │   └── UserErrors     several at once, all shown
        ├── StageFailed        exit 1: the work itself failed (a stage, a row, a gate)
        └── NeedsMissing       exit 3: an earlier stage's outputs are not there

Everything else that is raised is a bug and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Sequence


class PipelineError(Exception):
    """An error told in four parts: what, which value, where to look, what to do."""

    exit_code = 1

    def __init__(self, what: str, *, value: object = None, where: str = "", do: str = "") -> None:
        self.what, self.value, self.where, self.do = what, value, where, do
        parts = [what if value is None else f"{what}: {value!r}"]
        parts += [f"in {where}"] if where else []
        parts += [f"-> {do}"] if do else []
        super().__init__(" ".join(" ".join(parts).split()))


class UserError(PipelineError):
    """Something that the user can put right: exit code 2."""

    exit_code = 2


class UserErrors(UserError):
    """Several user errors found in one check, reported together; one line each."""

    def __init__(self, errors: Sequence[UserError]) -> None:
        super().__init__(f"{len(errors)} errors")
        self.errors = list(errors)

    def __str__(self) -> str:
        return "\n".join(str(error) for error in self.errors)


class StageFailed(PipelineError):
    """A stage ran and failed, or its result misses a declared bound: exit code 1."""

    exit_code = 1


class NeedsMissing(PipelineError):
    """The outputs of a needed stage are absent or are not those that its marker lists: exit code 3."""

    exit_code = 3
