#!/usr/bin/env bash
# Every check of this project: lint, types, shellcheck, tests (a real Slurm among them). Installs what it needs.
#
#   bash scripts/test.sh               all
#   bash scripts/test.sh tests/test_x.py -k word     these tests only, after the same checks
#   bash scripts/test.sh -m ""         also the long ones (further cases); bash scripts/chaos.sh is a suite of its own
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '\n== %s\n' "$*"; }

say "system packages"
bash scripts/install_system_packages.sh --with-browser
export PATH=$PATH:/usr/sbin

say "Python packages"
bash scripts/setup_venv.sh requirements-dev.txt
export PATH=$PWD/.venv/bin:$PATH VIRTUAL_ENV=$PWD/.venv
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE} HF_HUB_OFFLINE=1
export WANDB_MODE=disabled TOKENIZERS_PARALLELISM=false

say "ruff"
ruff check .
ruff format --check .

say "mypy --strict"
mypy

say "shellcheck"
mapfile -t shell_files < <(git ls-files -- '*.sh' '*.slurm' .ci/run)
if command -v shellcheck >/dev/null; then
    shellcheck "${shell_files[@]}"
else
    echo "shellcheck is not installed: SKIPPED"
fi

say "tests"
# most tests of Slurm wait; a file stays in one process, as its tests share a cluster; tests/conftest.py orders the files
exec python -m pytest -n "${TEST_PROCESSES:-3}" --dist loadfile --no-loadscope-reorder "$@"
