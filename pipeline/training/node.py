"""Starts a launcher on a node of a job and keeps it from Slurm's stop signals: the ranks save first, it ends with them.

python -m pipeline.training.node COMMAND ...
"""

from __future__ import annotations

import os
import signal
import sys


def main(command: list[str]) -> None:
    """Become the command, to which SIGTERM, SIGINT and SIGUSR1 mean nothing."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    os.execv(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
