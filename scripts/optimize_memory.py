"""What each stage of a recipe takes of a GPU: `python scripts/optimize_memory.py RECIPE [--gpu rtx4050]`.

The verb `fit` under its old name; contrastive stages too. `--config RECIPE` is taken as well.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.cli import main

if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if word != "--config"]
    sys.exit(main(["fit", *(words or ["--help"])]))
