"""The answers of an evaluation that is not finished: kept batch by batch, so that an interrupted one goes on."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

from pipeline.evaluation.generate import Completion
from pipeline.evaluation.predictions import Header


class PartialAnswers:
    """JSON lines: the header of the prediction file to be, then `[row index, completion]` as they come."""

    def __init__(self, path: Path, header: Header) -> None:
        """Read what the same evaluation wrote before; anything else, and a torn last line, is cut off."""
        self.path = path
        first = json.dumps(header.model_dump(exclude={"created"}), sort_keys=True)
        self.known: dict[int, Completion] = {}
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        if not lines or lines[0] != first.encode():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(first + "\n", encoding="utf-8")
            return
        for line in lines[1:]:
            index, completion = json.loads(line)
            self.known[index] = Completion(**completion)
        os.truncate(path, sum(len(line) + 1 for line in lines))

    def add(self, made: dict[int, Completion]) -> None:
        """Keep the completions of one batch."""
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps([index, asdict(one)]) + "\n" for index, one in made.items())
            file.flush()
            os.fsync(file.fileno())
        self.known |= made
