#!/usr/bin/env bash
# Break a real Slurm under runs of the pipeline, again and again, and see that nothing is lost:
#
#   bash scripts/chaos.sh                      10 rounds from a random seed, which is printed
#   bash scripts/chaos.sh --rounds 40 --seed 7
#   bash scripts/chaos.sh --summary            what all rounds so far gave (logs/chaos.jsonl)
#
# Needs root, Slurm's programs and the requirements of the tests (bash scripts/test.sh installs them).
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE HF_HUB_OFFLINE=1 WANDB_MODE=disabled TOKENIZERS_PARALLELISM=false
exec .venv/bin/python scripts/chaos.py "$@"
