"""The same stages through submitit's executors, which get only (run, stage) and execute the same job body."""

from __future__ import annotations

import os
import subprocess
from typing import Any

from pipeline.errors import StageFailed, UserError
from pipeline.run import HOME
from pipeline.submit import slurm
from pipeline.submit.plan import Plan, StagePlan
from pipeline.submit.transaction import job_variables


def run_stage(variables: dict[str, str], stage: str) -> None:
    """What submitit executes: the job body. Raises StageFailed so that the job fails and dependents do not start."""
    logs, body = variables["RLC_RUN_LOGS"], f"{variables['RLC_HOME']}/slurm/stage.sh"
    code = subprocess.run(["bash", body, logs, stage], env={**os.environ, **variables}, check=False).returncode
    if code:
        raise StageFailed(f"stage {stage} ended with code {code}", where=logs, do="read its log")


def submit(plan: Plan) -> dict[str, str]:
    """Submit the plan's stages to Slurm through submitit as one transaction; job ids by stage.

    Where there is no Slurm, submitit's local executor runs them one after the other. Raises UserError when a job is
    refused, StageFailed when a local one fails.
    """
    import submitit

    cut = [name for name in plan.names_to_run if plan.segments(name) > 1]
    if cut:
        raise UserError("no segments through submitit", value=cut, where="resources", do="use --via slurm")
    if not slurm.is_there():
        return _run_locally(plan, submitit)
    plan.run.write_transaction(state="open", stages=[each.stage.name for each in plan.to_run])
    jobs: dict[str, str] = {}
    complete = False
    try:
        for each in plan.to_run:
            after = [jobs[need] for need in each.stage.needs if need in jobs]
            executor = submitit.SlurmExecutor(folder=plan.run.submitit / "%j")
            executor.update_parameters(**parameters(plan, each, after, hold=not jobs))
            facts = {"via": "submitit", "fingerprint": each.stage.fingerprint, "after": after}
            plan.run.write_submission(each.stage.name, job="", **facts)
            try:
                with slurm.clean_environment():
                    job = executor.submit(run_stage, job_variables(plan), each.stage.name)
            except submitit.core.utils.FailedJobError as error:
                raise UserError(
                    "submitit could not submit the job", value=str(error)[:300], where=each.stage.name,
                    do="change resources in the recipe or the site's facts in configs/cluster.yaml",
                ) from error  # fmt: skip
            jobs[each.stage.name] = str(job.job_id)
            plan.run.write_submission(each.stage.name, job=str(job.job_id), **facts)
            plan.run.log_event("submitted", each.stage.name, job=str(job.job_id))
        slurm.release([next(iter(jobs.values()))])
        complete = True
    finally:
        if not complete:
            slurm.cancel(list(jobs.values()))
        plan.run.write_transaction(state="released" if complete else "taken back")
    return jobs


def _run_locally(plan: Plan, submitit: Any) -> dict[str, str]:
    jobs: dict[str, str] = {}
    for each in plan.to_run:
        executor = submitit.LocalExecutor(folder=plan.run.submitit / "%j")
        executor.update_parameters(timeout_min=minutes(each, plan))
        plan.run.write_submission(each.stage.name, job="", via="submitit", fingerprint=each.stage.fingerprint)
        job = executor.submit(run_stage, job_variables(plan), each.stage.name)
        jobs[each.stage.name] = f"local {job.job_id}"
        try:
            job.result()
        except submitit.core.utils.FailedJobError as error:
            reason = plan.run.state(each.stage.name).get("reason") or str(error)[-200:]
            where = str(plan.run.latest_log(each.stage.name))
            raise StageFailed(
                f"stage {each.stage.name} failed", value=reason, where=where, do="read the log"
            ) from error
    return jobs


def parameters(plan: Plan, each: StagePlan, after: list[str], *, hold: bool) -> dict[str, Any]:
    """submitit's names for what our sbatch lines and flags say."""
    resources = plan.recipe.resources[each.stage.name]
    flags = dict(flag.removeprefix("--").partition("=")[::2] for flag in each.flags)
    more: dict[str, Any] = {key: value or True for key, value in flags.items() if key not in ("mem-per-cpu", "gres")}
    more |= {"chdir": str(HOME), "comment": plan.run.comment(each.stage.name, each.stage.fingerprint)}
    more |= {"hold": True} if hold else {}
    more |= {"dependency": ",".join(f"afterok:{job}" for job in after)} if after else {}
    gres = flags.get("gres") or (f"gpu:{resources.gpus}" if resources.gpus else None)
    memory = {"mem": resources.memory} if plan.cluster.memory == "mem" else {}
    memory |= {"mem_per_cpu": flags["mem-per-cpu"]} if "mem-per-cpu" in flags else {}
    return {
        "job_name": f"{each.stage.name}_{plan.run.name}",
        "time": minutes(each, plan),
        "nodes": resources.nodes,
        "ntasks_per_node": 1,
        "cpus_per_task": resources.cpus,
        "stderr_to_stdout": True,
        "use_srun": False,
        **({"gres": gres} if gres else {}),
        **memory,
        "additional_parameters": more,
    }


def minutes(each: StagePlan, plan: Plan) -> int:
    """A stage's time limit in minutes, rounded up."""
    text = plan.recipe.resources[each.stage.name].time
    days, _, clock = text.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    hours, rest, seconds = [*parts, 0][:3]
    return int(days or 0) * 1440 + hours * 60 + rest + (1 if seconds else 0)
