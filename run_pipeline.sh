#!/usr/bin/env bash
# The one command:  bash run_pipeline.sh RECIPE [section.key=value ...] [--dry-run]  |  VERB ...
# Sets up .venv once, then hands over to python -m pipeline; `bash run_pipeline.sh --help` lists the verbs.
set -euo pipefail
home=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
bash "$home/scripts/setup_venv.sh"
export PYTHONPATH=$home${PYTHONPATH:+:$PYTHONPATH}
exec "$home/.venv/bin/python" -m pipeline "$@"
