"""What the settings of all stage kinds share: what a stage makes, and when a training stage saves."""

from __future__ import annotations

from typing import ClassVar, Literal

from pipeline.settings import Positive, Section


class StageSettings(Section):
    """Own keys of a stage's section, and what a stage of this kind makes."""

    makes: ClassVar[Literal["dataset", "model", "results", "robustness"]]


class Checkpoints(Section):
    """When a training stage saves all that it needs to go on exactly, and how many of these stay on the disk."""

    every_steps: Positive = 100
    keep: Positive = 2
    """While a new one is written there is one more. All are deleted when the stage is done."""
