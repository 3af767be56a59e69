"""Is this machine ready for a recipe: `python scripts/verify_setup.py [RECIPE]`; with a Slurm, `doctor` too."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.cli import main, tell
from pipeline.errors import PipelineError
from pipeline.submit import slurm
from pipeline.verbs.setup import verify


def run(words: list[str]) -> int:
    """0 when all is well, 2 when something is the user's to fix."""
    if words in (["-h"], ["--help"]):
        print(__doc__)
        return 0
    try:
        code = verify(words[0] if words else "smoke")
    except PipelineError as error:
        return tell(error)
    return max(code, main(["doctor", *words])) if slurm.is_there() else code


if __name__ == "__main__":
    sys.exit(run([word for word in sys.argv[1:] if word != "--config"]))
