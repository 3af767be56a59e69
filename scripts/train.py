"""Train by a configuration of models, data, trainer and reward, or by a recipe, on this machine.

python scripts/train.py --config FILE [--override section.key=value ...] [options of `python -m pipeline run`]
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *(sys.argv[1:] or ["--help"])]))
