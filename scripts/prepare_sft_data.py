"""Keep a teacher's right answers and make them a data set: `python scripts/prepare_sft_data.py [FILE] [--out DIR]`.

Without FILE the newest evaluation_results/gpt_predictions_*.json. Then: scripts/train_sft.py CONFIG --dataset_path DIR
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.cli import tell
from pipeline.errors import PipelineError, UserError
from pipeline.recipe_data import Data
from pipeline.run import HOME
from pipeline.settings import validate


def newest() -> Path:
    """The newest prediction file of a teacher. Raises UserError when there is none."""
    found = sorted((HOME / "evaluation_results").glob("gpt_predictions_*.json"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise UserError("no prediction file of a teacher", value="gpt_predictions_*.json",
                        where=str(HOME / "evaluation_results"), do="name one on the command line")  # fmt: skip
    return found[-1]


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("predictions", type=Path, nargs="?", help="JSON lines, or {header, predictions}")
    parser.add_argument("--out", type=Path, default=HOME / "data" / "processed" / "sft_deepseek")
    parser.add_argument("--source", default="generated", help="data file in which rows known by number are looked up")
    parser.add_argument("--labels", default="corrected", help="released, corrected or clean")
    parser.add_argument("--max-variables", type=int, default=6)
    parser.add_argument("--validation", type=float, default=0.15, help="share of each label kept from training")
    parser.add_argument("--check-steps", action="store_true", help="leave answers with a false reasoning step out")
    parser.add_argument("--seed", type=int, default=42)
    given = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from pipeline.tasks.prepare import prepare

    try:
        tree = {"completions": "teacher", "teacher": str(given.predictions or newest()), "source": given.source,
                "labels": given.labels, "max_variables": given.max_variables}  # fmt: skip
        data = validate(Data, tree, "the command line")
        summary = prepare(data, given.out, validation=given.validation, check_steps=given.check_steps, seed=given.seed)
    except PipelineError as error:
        return tell(error)
    print(json.dumps(summary, indent=1))
    print(f"written: {given.out}; next: python scripts/train_sft.py configs/deepseek.yaml --dataset_path {given.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
