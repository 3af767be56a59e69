"""Files of preference pairs: a prompt, a chosen and a rejected completion in each row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.settings import raise_all
from pipeline.tasks.published import file_rows
from pipeline.tasks.source import MAX_REPORTED

FORM = '{"prompt": "...", "chosen": "...", "rejected": "..."}'


@dataclass(frozen=True)
class Preference:
    """One row: the user's message, the completion that is better and the one that is worse."""

    prompt: str
    chosen: str
    rejected: str


def read_preferences(path: Path) -> list[Preference]:
    """The pairs of a file (JSON lines, also compressed, one JSON list, or Parquet).

    Each field is a text, or messages of which the prompt has one, the user's, and a completion ends with the
    assistant's. Without `prompt` it is what both completions begin with. Raises UserErrors, at most ten, that name the
    rows that are none.
    """
    found: list[Preference] = []
    errors: list[UserError] = []
    for number, row in enumerate(file_rows(path)):
        try:
            found.append(_preference(row, f"row {number} of {path}"))
        except UserError as error:
            errors.append(error)
        if len(errors) == MAX_REPORTED:
            break
    raise_all(errors)
    if not found:
        raise UserError("a file without pairs", value=path.name, where=str(path), do=f"give rows {FORM}")
    return found


def _preference(row: Mapping[str, Any], where: str) -> Preference:
    prompt = row.get("prompt")
    if prompt is None and isinstance(row.get("chosen"), list):
        prompt = row["chosen"][:-1]
    made = Preference(
        _text(prompt, "prompt", "user", where),
        _text(row.get("chosen"), "chosen", "assistant", where),
        _text(row.get("rejected"), "rejected", "assistant", where),
    )
    if made.chosen == made.rejected:
        raise UserError("chosen and rejected are the same", value=made.chosen[:60], where=where, do="leave it out")
    return made


def _text(value: Any, field: str, role: str, where: str) -> str:
    """The text of a field, or of its last message, which must be of `role`; a prompt has no other."""
    if isinstance(value, list) and value and (field != "prompt" or len(value) == 1):
        last = value[-1]
        if isinstance(last, dict) and last.get("role") == role and isinstance(last.get("content"), str):
            return str(last["content"])
    elif isinstance(value, str) and value:
        return value
    raise UserError(f"field `{field}` is not a text", value=str(value)[:60], where=where, do=f"rows are {FORM}")
