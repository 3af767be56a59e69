#!/usr/bin/env bash
# Install by apt what the tests drive, only what is missing: bubblewrap, Slurm, munge, shellcheck; Chromium with --with-browser.
# Where that cannot be done (not root, no apt) it says what is missing and ends with 0: the tests that need it then
# skip, loudly.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin

programs=(bwrap slurmctld slurmd sbatch munged shellcheck slurmdbd mariadbd my_print_defaults)
packages=(bubblewrap slurmctld slurmd slurm-client munge shellcheck slurmdbd mariadb-server-core mariadb-client-core)
if [ "${1:-}" = --with-browser ]; then
    programs+=(chromium)
    packages+=(chromium)
fi

missing=()
for i in "${!programs[@]}"; do
    command -v "${programs[i]}" >/dev/null || missing+=("${packages[i]}")
done
if [ ${#missing[@]} = 0 ]; then
    echo "system packages: all there (${packages[*]})"
    exit 0
fi
if ! command -v apt-get >/dev/null; then
    echo "system packages: NOT INSTALLED: ${missing[*]} -> no apt-get here; install them by hand, or their tests skip"
    exit 0
fi
if [ "$(id -u)" != 0 ]; then
    echo "system packages: NOT INSTALLED: ${missing[*]} -> not root; apt-get install ${missing[*]}, or their tests skip"
    exit 0
fi

# The packages must not start services: the tests start their own daemons. What stood here before is put back.
policy=/usr/sbin/policy-rc.d
kept=$(mktemp -d)
restore() {
    rm -f "$policy"
    [ ! -e "$kept/policy" ] || cp -a "$kept/policy" "$policy"
    rm -rf "$kept"
}
trap restore EXIT
[ ! -e "$policy" ] || cp -a "$policy" "$kept/policy"
rm -f "$policy"
printf '#!/bin/sh\nexit 101\n' >"$policy"
chmod +x "$policy"

log=$(mktemp)
apt() {
    DEBIAN_FRONTEND=noninteractive apt-get -qq "$@" >>"$log" 2>&1 || {
        echo "error: apt-get $1 failed: '${missing[*]}' in the log $log -> read its last lines:" >&2
        tail -n 5 "$log" >&2
        exit 2
    }
}
echo "system packages: reading the lists of packages"
apt update
echo "system packages: installing ${missing[*]}"
apt install --yes --no-install-recommends "${missing[@]}"
rm -f "$log"
echo "system packages: done"
