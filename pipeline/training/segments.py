"""A stage in segments, as its job body sees it: one that begins after another failed has nothing to do."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

from pipeline.run import RunDir


def segment_failed(record: Mapping[str, Any], jobs: Container[str]) -> bool:
    """Whether a stage's record says that one of these jobs failed for a reason of its own: others would fail alike."""
    return record.get("state") == "failed" and record.get("job") in jobs


def failure_before(run: RunDir, stage: str, job: str) -> str:
    """Why a job must not begin: a segment of its stage before it failed; empty when none did."""
    segments = run.submission(stage).get("segments", [])
    record = run.state(stage)
    if job not in segments or not segment_failed(record, segments[: segments.index(job)]):
        return ""
    return f"{stage} failed in the segment before this one (job {record['job']}): {record.get('reason')}"
