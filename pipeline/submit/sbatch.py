"""Stage -> sbatch script. Pure: the same stage gives the same text; no site facts, no paths, no clock."""

from __future__ import annotations

from pipeline.recipe import Recipe, Resources

BODY = """\
set -euo pipefail
# sbatch runs a copy of this file: the project is where it was submitted from, or where the launcher says.
cd "${RLC_HOME:-${SLURM_SUBMIT_DIR:-.}}"
exec bash slurm/stage.sh "${RLC_RUN_LOGS:-@RECIPE@}" @STAGE@
"""

EVALUATE = """\
#!/bin/bash
# Evaluate a model folder under a name, into the results of the run that made it:
#   sbatch slurm/evaluate.slurm ./models/phi3_grpo_model grpo
# Made by: python -m pipeline render
@LINES@
set -euo pipefail
cd "${RLC_HOME:-${SLURM_SUBMIT_DIR:-.}}"
if [ $# != 2 ]; then
    echo "usage: sbatch slurm/evaluate.slurm MODEL_DIR NAME" >&2
    exit 2
fi
python=.venv/bin/python
[ -x "$python" ] || python=python3
exec "$python" -m pipeline evaluate "$1" "$2"
"""


COMPARE = """\
set -euo pipefail
cd "$RLC_HOME"
set +u # site modules often use unset variables
. "$RLC_RUN_LOGS/environment.sh"
set -u
python=.venv/bin/python
[ -x "$python" ] || python=python3
exec "$python" -m pipeline compare-sweep "$RLC_RUN_LOGS"
"""


def sbatch_lines(name: str, resources: Resources, *, memory: bool = True) -> list[str]:
    """The #SBATCH lines of a job. `name` has been validated: nothing else of the user's stands in them."""
    lines = [
        f"--job-name={name}",
        f"--time={resources.time}",
        f"--nodes={resources.nodes}",
        "--ntasks-per-node=1",
        f"--cpus-per-task={resources.cpus}",
    ]
    lines += [f"--mem={resources.memory}"] if memory else []
    lines += [f"--gres=gpu:{resources.gpus}"] if resources.gpus else []
    lines += [f"--exclude={','.join(resources.exclude)}"] if resources.exclude else []
    lines += ["--output=logs/%x_%j.out", "--open-mode=append", "--requeue", f"--signal=B:USR1@{stop_lead(resources)}"]
    return [f"#SBATCH {line}" for line in lines]


def seconds(time: str) -> int:
    """A time limit as Slurm reads it: MM:SS, HH:MM:SS, D-HH:MM or D-HH:MM:SS, in seconds."""
    days, dash, clock = time.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    hours, minutes, rest = [*parts, 0][:3] if dash else [0, *parts][-3:]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + rest


def stop_lead(resources: Resources) -> int:
    """Seconds before the time limit at which the job body is warned: `stop_lead`, at most a quarter of the time."""
    return max(1, min(resources.stop_lead, seconds(resources.time) // 4))


def stage_script(recipe: Recipe, run_name: str, stage: str, *, memory: bool = True) -> str:
    """The script of one stage. Submitted alone it works on the run that has the recipe's name."""
    header = [
        "#!/bin/bash",
        f"# Stage {stage} of {run_name} (recipe {recipe.name}). Made by: python -m pipeline render",
        *sbatch_lines(f"{stage}_{run_name}", recipe.resources[stage], memory=memory),
    ]
    return "\n".join(header) + "\n" + BODY.replace("@RECIPE@", recipe.name).replace("@STAGE@", stage)


def evaluate_script() -> str:
    """slurm/evaluate.slurm: any model folder, under any name. Without the warning, for which it has no handler."""
    resources = Resources(time="02:00:00", gpus=1, cpus=4, memory="32G")
    lines = [line for line in sbatch_lines("evaluate", resources) if "--signal=" not in line]
    return EVALUATE.replace("@LINES@", "\n".join(lines))


def compare_script(name: str, resources: Resources, *, memory: bool = True) -> str:
    """The last job of the sweep `name`. Without the warning, for which it has no handler."""
    lines = [line for line in sbatch_lines(f"compare_{name}", resources, memory=memory) if "--signal=" not in line]
    return "\n".join(["#!/bin/bash", f"# The comparison of sweep {name}.", *lines]) + "\n" + COMPARE
