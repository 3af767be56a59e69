"""How a stage's module is started: what the user can fix ends it with its four parts, not with a traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from pipeline.errors import PipelineError


def run_stage(main: Callable[[Path, str], None]) -> None:
    """Call `main` with the folder of logs and the stage named on the command line; ends with the code of its error."""
    try:
        main(Path(sys.argv[1]), sys.argv[2])
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
