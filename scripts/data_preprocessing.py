"""Make the processed rows of a recipe on this machine.

python scripts/data_preprocessing.py RECIPE [section.key=value ...] [--run-name NAME]
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.cli import main

if __name__ == "__main__":
    sys.exit(main(["run", *(sys.argv[1:] or ["--help"]), "--only", "preprocess", "--via", "local"]))
