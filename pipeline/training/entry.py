"""How a stage's module is started: what the user can fix ends it with its four parts, not with a traceback."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from pathlib import Path

from pipeline.errors import PipelineError

EVERY = gc.get_threshold()
"""Python's own: it looks for cycles after so many new objects."""
STARTING = 20_000
"""The same while libraries are imported, whose million objects stay: the search took an eighth of a stage's start."""


def run_stage(main: Callable[[Path, str], None]) -> None:
    """Call `main` with the folder of logs and the stage named on the command line; ends with the code of its error."""
    gc.set_threshold(STARTING)
    try:
        main(Path(sys.argv[1]), sys.argv[2])
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)


def started() -> None:
    """From now on cycles are searched for as ever, but for what is there already: they may hold a GPU's memory."""
    gc.freeze()
    gc.set_threshold(*EVERY)
