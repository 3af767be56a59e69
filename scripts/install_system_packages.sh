#!/usr/bin/env bash
# Install by apt what the tests drive: Slurm, munge, shellcheck, and with --with-browser Chromium. Only what is missing.
# Where that cannot be done (not root, not Debian) it says what is missing; the tests that need it then skip, loudly.
set -euo pipefail

wanted=(slurmctld slurmd slurm-client munge shellcheck)
[ "${1:-}" != --with-browser ] || wanted+=(chromium)

missing=()
if command -v dpkg-query >/dev/null; then
    for package in "${wanted[@]}"; do
        status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
        [ "$status" = installed ] || missing+=("$package")
    done
else
    echo "not a Debian system: ${wanted[*]} must be installed by hand; tests that lack them are skipped"
    exit 0
fi
if [ ${#missing[@]} = 0 ]; then
    echo "all there: ${wanted[*]}"
    exit 0
fi
if [ "$(id -u)" != 0 ]; then
    echo "missing and not root: ${missing[*]} (apt-get install ${missing[*]}); tests that lack them are skipped"
    exit 0
fi

# Slurm and munge must not start services of their own: the tests start theirs, in a folder of their own.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod +x $policy
    trap 'rm -f $policy' EXIT
fi
echo "installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
