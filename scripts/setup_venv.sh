#!/usr/bin/env bash
# Make .venv and install a requirements file into it, once; a changed file or a broken install is done again.
#   bash scripts/setup_venv.sh [requirements.txt]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
requirements=${1:-requirements.txt}

stamp=.venv/installed-$requirements.sha256
wanted=$(cat requirements*.txt | sha256sum)
[ "$(cat "$stamp" 2>/dev/null || true)" != "$wanted" ] || exit 0

python=
for candidate in python3 python3.13 python3.12 python3.11; do
    if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    found=$(python3 --version 2>&1 || true)
    echo "error: no Python 3.11 or newer with venv: '$found' in PATH -> install one (python3-venv), or load its module" >&2
    exit 2
fi

echo "setting up .venv from $requirements, once; this takes a minute or more and needs 2 GB"
[ -x .venv/bin/python ] || "$python" -m venv .venv
.venv/bin/python -m pip install --disable-pip-version-check --progress-bar off --quiet -r "$requirements" || {
    echo "error: pip could not install: '$requirements' in .venv -> read its message above; run again when it is mended" >&2
    exit 2
}
echo "$wanted" >"$stamp"
