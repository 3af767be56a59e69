#!/usr/bin/env bash
# Breaks the smoke pipeline on a real Slurm in every way there is, and checks that nothing is lost: docs/reliability.md
#   bash scripts/chaos.sh [--rounds N] [--seed S] [--results FILE]
#   bash scripts/chaos.sh --report       the figures of all rounds so far
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/install_system_packages.sh
bash scripts/setup_venv.sh requirements-dev.txt
exec .venv/bin/python scripts/chaos.py "$@"
