"""`scripts/verify_setup.py`: this machine against a recipe."""

from __future__ import annotations

from pipeline import show
from pipeline.submit.environment import checks
from pipeline.submit.start import resolve


def verify(word: str) -> int:
    """Show every check; 2 when something is wrong. Raises UserErrors for a recipe that is."""
    recipe, run, _ = resolve(word, [], None)
    found = checks(recipe, run)
    for each in found:
        show.check(each)
    return 2 if any(each.good is False for each in found) else 0
