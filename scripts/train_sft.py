"""Run the SFT stage of a recipe on this machine, in one process or below a launcher.

python scripts/train_sft.py RECIPE_OR_FILE [--flat_key value ...] [section.key=value ...] [--run-name NAME]
torchrun --nproc_per_node=4 scripts/train_sft.py RECIPE_OR_FILE ...
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.script import train

if __name__ == "__main__":
    sys.exit(train("sft", sys.argv[1:]))
