"""Evaluate a model folder under a name: `python scripts/evaluate_model.py MODEL_DIR NAME [--run-name RUN]`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *(sys.argv[1:] or ["--help"])]))
