"""The two ends of a line by line conversation of a sandboxed process with the process that started it."""

from __future__ import annotations

import os
import resource
import sys

TYPE_CHECKING = False  # as in typing, which takes longer to import than all else here
if TYPE_CHECKING:
    from typing import BinaryIO


def limit(limits: dict[str, int]) -> None:
    """Set limits of this process and its children by their names in `resource`; they cannot be raised again."""
    for name, value in limits.items():
        resource.setrlimit(getattr(resource, name), (value, value))


def open_channel() -> tuple[BinaryIO, BinaryIO]:
    """(in, out): the standard streams, taken away from what runs here later: it reads and writes nothing instead."""
    ends = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    sys.setrecursionlimit(1000)
    return ends
