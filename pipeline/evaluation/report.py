"""One self-contained page of results per run."""

from __future__ import annotations

from pathlib import Path

from pipeline.records import write_atomic
from pipeline.run import RunDir


def write_report(run: RunDir) -> Path:
    """Write report.html from what the run has; its path."""
    write_atomic(run.report, "<!doctype html><title>report</title>\n")
    return run.report
