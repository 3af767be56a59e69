#!/usr/bin/env bash
# The job body of every stage, the same under Slurm, submitit and on this machine:
#   stage.sh RUN_LOGS STAGE     a stage of the run whose logs folder is given
#   stage.sh RECIPE STAGE       the same, in the run that has the recipe's name
# It ends with the stage's exit code. The last exec leaves one process that gets Slurm's signals.
set -euo pipefail
trap '' USR1 # the warning before the time limit: ignored until the last exec handles it
cd "$(dirname "${BASH_SOURCE[0]}")/.."

run_logs=$1 stage=$2
python=.venv/bin/python
[ -x "$python" ] || python=python3
case $run_logs in
*/*) ;;
*) run_logs=$("$python" -m pipeline resolve "$run_logs") ;;
esac
if [ -f "$run_logs/environment.sh" ]; then
    set +u # site modules often use unset variables
    # shellcheck source=/dev/null
    . "$run_logs/environment.sh"
    set -u
fi
exec "$python" -m pipeline.training.launch "$run_logs" "$stage"
