"""The wish to stop, from a signal or from the job body's file; work polls it between steps and saves before it ends."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

from pipeline.records import write_json
from pipeline.training.ranks import rank

STOP_FILE = "stop"
"""In the attempt's folder: the job body wants the stage to stop. Reaches all ranks under every launcher."""
STOPPED_FILE = "stopped.json"
"""In the attempt's folder: the stage has saved and stopped, it is not done."""
STOPPED_CODE = 130


class StopFlag:
    """Set by SIGTERM, by SIGUSR1 (Slurm's warning before the time limit) or by the job body's file."""

    def __init__(self) -> None:
        folder = os.environ.get("RLC_ATTEMPT_DIR")
        self.file = Path(folder) / STOP_FILE if folder else None
        self.signalled = False
        self.owner = os.getpid()
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._set)

    def is_set(self) -> bool:
        """Whether this process knows that the stage shall stop."""
        return self.signalled or (self.file is not None and self.file.exists())

    def _set(self, number: int, _: object) -> None:
        if os.getpid() != self.owner:  # a data loader's worker inherits the handler, not the duty to save
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.signalled = True


def end_stopped(progress: str) -> NoReturn:
    """End this process after its work was saved; `progress` says how far it came.

    With a job body the process ends with 0, so that no launcher kills the others, and the body reads the record.
    """
    folder = os.environ.get("RLC_ATTEMPT_DIR")
    if rank() == 0:
        print(f"stopped {progress}: all that is needed to go on is saved", flush=True)
        if folder:
            write_json(Path(folder) / STOPPED_FILE, {"progress": progress})
    sys.exit(0 if folder else STOPPED_CODE)
