"""Stages cut into segments: several jobs one after the other, where one may not last long enough or come back.

Segment k + 1 starts when segment k has ended, well or not, and goes on from its checkpoint; what needs the stage starts
when any of them has succeeded. A segment that finds the stage done ends at once.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

from pipeline.cluster import ClusterFile, max_time
from pipeline.dag import Stage
from pipeline.errors import UserError
from pipeline.recipe import KINDS, Recipe, Resources
from pipeline.submit.sbatch import seconds, stop_lead

WITHOUT_LIMIT = 2
"""Segments proposed where a job may not come back, but lasts long enough: one more after a preemption."""


def afterok(needs: Sequence[Sequence[str]]) -> str:
    """Slurm's words for: after one job of each of these stages has succeeded. `?` is its or, never mixed with `,`."""
    return ("?" if len(needs) == 1 else ",").join(f"afterok:{job}" for jobs in needs for job in jobs)


def waited_for(stage: Stage, stages: Mapping[str, Stage], at_work: Container[str]) -> list[str]:
    """The needs of a stage with a job of their own, without those that another of them waits for in any case."""
    needs = [need for need in stage.needs if need in at_work]
    return [need for need in needs if not any(need in _before(other, stages, at_work) for other in needs)]


def _before(name: str, stages: Mapping[str, Stage], at_work: Container[str]) -> set[str]:
    """The stages whose jobs the job of a stage waits for, directly or not."""
    direct = {need for need in stages[name].needs if need in at_work}
    return direct.union(*(_before(need, stages, at_work) for need in direct))


def refuse_mixed(recipe: Recipe, stages: Mapping[str, Stage], names: Sequence[str]) -> None:
    """Raise UserError for a stage of these that would have to wait for several, one of them in segments."""
    for name in names:
        needs = waited_for(stages[name], stages, names)
        cut = [need for need in needs if recipe.resources[need].segments > 1]
        if cut and len(needs) > 1:
            raise UserError(
                f"{name} needs {' and '.join(needs)}: Slurm cannot wait for any segment of one stage and for another "
                "stage too", value=f"segments: {recipe.resources[cut[0]].segments}", where=f"resources.{cut[0]}",
                do="set segments to 1, or let these stages need one another",
            )  # fmt: skip


def asked(cluster: ClusterFile, resources: Resources) -> Resources:
    """What a job asks for: the stage's resources, for no more time than the site gives to a job."""
    most = max_time(cluster, resources)
    shorter = most is not None and seconds(most) < seconds(resources.time)
    return resources.model_copy(update={"time": most}) if shorter else resources


def time_flags(cluster: ClusterFile, resources: Resources) -> list[str]:
    """The sbatch flags that replace the time of a script where that is longer than the site allows."""
    job = asked(cluster, resources)
    return [] if job is resources else [f"--time={job.time}", f"--signal=B:USR1@{stop_lead(job)}"]


def proposal(cluster: ClusterFile, recipe: Recipe, stage: Stage) -> str:
    """What a stage comes to where jobs are shorter than it or may not come back, and what to set; else empty."""
    resources = recipe.resources[stage.name]
    job = asked(cluster, resources)
    limit = f"resources.{stage.name}: {resources.time} in jobs of {job.time}"
    if KINDS[stage.kind].makes == "dataset":
        return "" if job is resources else f"{limit}, and this stage cannot go on where it stopped"
    if cluster.requeue:
        return "" if job is resources else f"{limit}; it goes back to the queue before the end of each"
    if job is resources:
        needed, why = WITHOUT_LIMIT, "jobs may not be requeued after a preemption"
    else:
        needed = -(-seconds(resources.time) // (seconds(job.time) - stop_lead(job)))
        why = f"jobs may not be requeued, last {job.time} at most, and save in the last {stop_lead(job)} s"
    enough = resources.segments >= needed
    return "" if enough else f"resources.{stage.name}.segments: {resources.segments}, {needed} would do: {why}"
