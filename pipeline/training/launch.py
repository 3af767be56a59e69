"""What the job body does: verify needs, start the stage's processes, record how they end, requeue or mark done.

    python -m pipeline.training.launch RUN_LOGS STAGE

Runs under Slurm, submitit and locally alike; imports no torch. Exit codes: 0 done, 1 the stage failed, 2 the user's to
fix, 3 needs missing, 130 interrupted.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from pipeline import dag
from pipeline.dag import Stage
from pipeline.errors import NeedsMissing, PipelineError
from pipeline.recipe import KINDS, Recipe
from pipeline.records import first_difference, remove
from pipeline.remedies import Remedy, propose
from pipeline.run import CANCELLED, HOME, RunDir, now
from pipeline.snapshot import check_snapshot
from pipeline.training import checkpoints, joined
from pipeline.training.child import Child
from pipeline.training.failures import classify, oom_kills, read_logs
from pipeline.training.hub import check_cached
from pipeline.training.launchers import gpus_at_hand, launch_command, process_environment, processes
from pipeline.training.own_job import why_stopped
from pipeline.training.ranks import die_with_parent
from pipeline.training.requeue import progress, refuse_stalling, requeue
from pipeline.training.segments import failure_before
from pipeline.training.served import serving
from pipeline.training.stop import STOPPED_CODE

HAND_OVER_SECONDS = 120.0
"""How long a job that ends takes at most to have its successor submitted."""


def verify_needs(run: RunDir, stages: dict[str, Stage], name: str) -> None:
    """Check the markers and the outputs of all that a stage needs. Raises NeedsMissing with what is not there."""
    for need in dag.ancestors(stages, name):
        done = run.done(need)
        if done is None:
            raise NeedsMissing(f"{name} needs {need}, which is not done", where=str(run.stage(need)), do=f"run {need}")
        if done.fingerprint != stages[need].fingerprint:
            raise NeedsMissing(
                f"{name} needs {need} as the recipe is now, but it was done with other settings or code",
                where=str(run.stage(need)), do=f"run {need} again (--replace), or choose a new --run-name",
            )  # fmt: skip
        difference = first_difference(run.root, done.outputs, thorough=True)
        if difference:
            raise NeedsMissing(f"{name} needs {need}: {difference}", where=str(run.root), do=f"run {need} again")


def execute(run: RunDir, name: str) -> int:
    """Run one stage to its end; the exit code of the job."""
    recipe, _ = run.read_resolved()
    stage = dag.build(recipe, run)[name]
    done = run.done(name)
    if done and done.fingerprint == stage.fingerprint and not first_difference(run.root, done.outputs, thorough=True):
        print(f"{name} is done already", flush=True)
        return 0
    failure = failure_before(run, name, os.environ.get("SLURM_JOB_ID", ""))
    if failure:
        print(f"error: {failure}", file=sys.stderr, flush=True)
        return 1
    child = Child()
    code, remedy = try_stage(run, name, child)
    while remedy and remedy.same_job and joined.MEETING not in os.environ:  # else the other ranks have ended
        code, remedy = try_stage(run, name, child)
    if remedy:
        hand_over(run, name)
    return code


def try_stage(run: RunDir, name: str, child: Child) -> tuple[int, Remedy | None]:
    """One attempt at a stage: (exit code, what changes before the next one if anything does)."""
    recipe, _ = run.read_resolved()
    stages = dag.build(recipe, run)
    stage = stages[name]
    attempt = run.new_attempt(name)
    job = os.environ.get("SLURM_JOB_ID", "")
    run.write_attempt(name, attempt, job=job, progress=progress(run, stage), remedies=len(run.remedies(name)))
    facts: dict[str, Any] = {"attempt": attempt, "host": os.uname().nodename, "pid": os.getpid(), "reason": ""}
    facts["node"] = os.environ.get("SLURMD_NODENAME", "")
    run.write_state(name, state="running", **facts, job=job, started=now(), ended=None, exit_code=None)
    print(f"stage {name} of run {run.name}, attempt {attempt}, log {run.attempt_log(name, attempt)}", flush=True)
    code, reason, remedy = 1, "", None
    try:
        check_snapshot()
        verify_needs(run, stages, name)
        check_cached(recipe, run, os.environ, data=KINDS[stage.kind].makes == "dataset")
        kills = oom_kills()
        code, reason = work(run, recipe, stage, child, attempt)
        if code == 1 and not run.next_attempt(name, attempt).exists():
            remedy = find_remedy(run, recipe, name, attempt, oom_killed=oom_kills() > kills)
            reason += f"; {remedy.told()}" if remedy else ""
    except PipelineError as error:
        code, reason = error.exit_code, str(error)
        print(f"error: {error}", file=sys.stderr, flush=True)
    finally:
        superseded = run.next_attempt(name, attempt).exists()
        if not superseded:
            state, reason = record_end(run, name, code, reason)
    if superseded:
        print(
            f"a later attempt of {name} has begun, on a node that Slurm knows to live: this one gives way", flush=True
        )
        return code or 1, None
    if state == "interrupted" and job and child.stopped_by != signal.SIGINT:
        back_to_the_queue(run, name, job, reason)
    return code, remedy


def find_remedy(run: RunDir, recipe: Recipe, name: str, attempt: int, *, oom_killed: bool) -> Remedy | None:
    """What changes after a failed attempt, recorded; None where the failure is not of a kind that a change mends."""
    failure = classify(read_logs(run.attempt_log(name, attempt).parent), oom_killed=oom_killed)
    if failure is None:
        return None
    node = failure.node or os.environ.get("SLURMD_NODENAME", "")
    remedy = propose(recipe, name, attempt, failure.kind, failure.evidence, node, run.remedies(name))
    if remedy and (remedy.same_job or node):  # without Slurm nobody gives more memory or another node
        run.add_remedy(remedy)
        print(f"{failure.kind}: {failure.evidence}\n{remedy.told()}", flush=True)
        return remedy
    return None


def hand_over(run: RunDir, name: str) -> None:
    """Have the failed stage submitted again with what its remedy asks of Slurm, before this job ends."""
    _, launch = run.read_resolved()
    facts = run.submission(name)
    if os.environ.get("SLURM_JOB_ID") not in (facts.get("job"), *facts.get("segments", [])):
        return  # submitted by hand: what comes next is for that hand
    command = [sys.executable, "-m", "pipeline", "retry", run.name, name, "--ending"]
    try:
        done = subprocess.run(
            command, cwd=launch["home"], capture_output=True, text=True, timeout=HAND_OVER_SECONDS, check=False
        )
        told = done.stdout + done.stderr
    except subprocess.TimeoutExpired:
        told = f"not submitted again: Slurm does not answer within {HAND_OVER_SECONDS:.0f} s"
    print(told, flush=True)


def record_end(run: RunDir, name: str, code: int, reason: str) -> tuple[str, str]:
    """Record how an attempt ended; (state, reason)."""
    before = run.state(name)
    told = CANCELLED if "cancelled" in run.submission(name) else ""  # `cancel` says so before Slurm hears of it
    because = before["reason"] if before["state"] == "cancelled" else told
    cancelled = code == STOPPED_CODE and because != ""
    state = "cancelled" if cancelled else {0: "done", STOPPED_CODE: "interrupted"}.get(code, "failed")
    reason = f"{because}; {reason}" if cancelled else reason
    stopped = why_stopped() if code == STOPPED_CODE else ""
    peak = round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6, 3)
    facts = {"state": state, "ended": now(), "exit_code": code, "peak_memory_gb": peak}
    run.write_state(name, **facts, reason=reason, slurm=stopped)
    return state, reason


def work(run: RunDir, recipe: Recipe, stage: Stage, child: Child, attempt: int) -> tuple[int, str]:
    """Start the stage's processes and wait for them; (exit code, reason). Marks the stage done when it is.

    Raises StageFailed when the job comes back again and again without getting further, UserError when the checkpoint
    to go on from is of another number of processes.
    """
    resources = recipe.resources[stage.name]
    refuse_stalling(stage.name, run.attempts(stage.name), resources.stalled_requeues)
    run.unmark(stage.name)
    count = processes(resources, gpus_at_hand())
    checkpoints.prepare(run.checkpoints(stage.name), stage.fingerprint, count * resources.nodes)
    log = run.attempt_log(stage.name, attempt)
    started = joined.MEETING in os.environ and KINDS[stage.kind].makes == "model"
    command = launch_command(stage, run.logs, resources, count, started=started)
    environment = process_environment(count, log.parent, debug=resources.debug, group=started)
    successor = run.next_attempt(stage.name, attempt)
    beside = serving(recipe, run, stage.name, environment, log.with_name("generation.out"), child.kill)
    with beside as (environment, server):
        if started:
            joined.announce(HOME, run.logs, stage.name, environment)
        code, reason = child.run(command, environment, log, successor, alone=resources.launcher == "none")
    reason = server.failure if server and server.failure else reason
    if code == 0 and not successor.exists():
        run.mark_done(stage.name, stage.fingerprint, list(stage.outputs))
        remove([run.checkpoints(stage.name)])
    return code, reason


def back_to_the_queue(run: RunDir, name: str, job: str, reason: str) -> None:
    """Requeue this job; recorded before, as Slurm ends the job body at once."""
    run.write_state(name, reason=f"{reason}; back to the queue")
    refused = requeue(job)
    if refused:
        run.write_state(name, reason=f"{reason}; not requeued: {refused}")
        print(f"not requeued: {refused}", flush=True)


def become_rank(run: RunDir, name: str) -> None:
    """Become one process of a stage whose attempt another process has begun. Raises NeedsMissing, UserError."""
    check_snapshot()
    recipe, _ = run.read_resolved()
    stage, resources = dag.build(recipe, run)[name], recipe.resources[name]
    count = processes(resources, gpus_at_hand())
    environment = process_environment(count, Path(os.environ["RLC_ATTEMPT_DIR"]), debug=resources.debug, group=True)
    command = launch_command(stage, run.logs, resources, count, started=True)
    os.chdir(HOME)
    os.execve(command[0], command, environment)


def main(logs: str, name: str) -> int:
    """Run a stage of the run whose logs folder is given."""
    try:
        if joined.MEETING in os.environ:
            die_with_parent()
        if joined.is_follower():
            become_rank(RunDir.of_logs(Path(logs)), name)
        return execute(RunDir.of_logs(Path(logs)), name)
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
