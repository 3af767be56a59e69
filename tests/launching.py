"""A copy of the project whose stages train nothing but do what they are told, for tests of the launcher."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from conftest import Slurm
from test_slurm_dag import copy_project

from pipeline.run import RunDir

Env = Mapping[str, str] | None
STAGES = ["preprocess", "sft", "grpo", "evaluate"]
STAGE = '''\
"""A stage that makes its outputs at once, after it has followed the orders of a test."""

import sys
from pathlib import Path

from pipeline import dag
from pipeline.run import RunDir

run, name = RunDir.of_logs(Path(sys.argv[1])), sys.argv[2]
orders = run.root / "orders" / run.name / f"{name}.py"
if orders.exists():
    exec(compile(orders.read_text(), str(orders), "exec"))
for output in dag.build(run.read_resolved()[0], run)[name].outputs:
    file = output if output.suffix else output / "made"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"by {name}")
'''
WRAPPER = """\
#!/bin/bash
# $FAULT is NUMBER-WHEN: at this call of this command the launcher dies before, after or instead of it.
count=$(( $(cat "$FAULTS/{name}.calls" 2>/dev/null || echo 0) + 1 ))
echo "$count" >"$FAULTS/{name}.calls"
[ "$FAULT" != "{name}-$count-instead" ] || {{ kill -9 $PPID; exit 1; }}
[ "$FAULT" != "{name}-$count-refused" ] || {{ echo "no such luck" >&2; exit 1; }}
[ "$FAULT" != "{name}-$count-silent" ] || exec sleep 600
[ "$FAULT" != "{name}-$count-before" ] || kill -9 $PPID
{real} "$@"
code=$?
[ "$FAULT" != "{name}-$count-after" ] || kill -9 $PPID
exit $code
"""
"""Stands before a command of Slurm on the PATH."""


class Project:
    """The copy, the command line in it, and the Slurm that it talks to."""

    def __init__(self, home: Path, slurm: Slurm) -> None:
        self.home, self.slurm = copy_project(home), slurm
        for kind in STAGES:
            (home / "pipeline" / "stages" / f"{kind}.py").write_text(STAGE)

    def start(self, *words: str, env: Env = None) -> subprocess.CompletedProcess[str]:
        """The command line, whatever comes of it."""
        command = [str(self.home / ".venv" / "bin" / "python"), "-m", "pipeline", *words]
        return self.slurm.run(*command, cwd=self.home, **{"COLUMNS": "200", **(env or {})})

    def call(self, *words: str, code: int = 0, env: Env = None) -> str:
        """All that it says; its exit code must be `code`."""
        done = self.start(*words, env=env)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def json(self, *words: str, code: int = 0, env: Env = None) -> Any:
        done = self.start(*words, "--json", env=env)
        assert done.returncode == code, done.stdout + done.stderr
        return json.loads(done.stdout)

    def run(self, name: str, *words: str, code: int = 0, env: Env = None) -> str:
        """`run smoke` under a name."""
        return self.call("run", "smoke", *words, "--run-name", name, "--via", "slurm", code=code, env=env)

    def folder(self, name: str) -> RunDir:
        return RunDir(self.home, name)

    def order(self, name: str, stage: str, code: str) -> None:
        """Python that a stage of a run executes before it makes its outputs."""
        path = self.home / "orders" / name / f"{stage}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code)

    def stages(self, name: str, env: Env = None) -> dict[str, dict[str, Any]]:
        return {each["stage"]: each for each in self.json("status", name, env=env)["stages"]}

    def states(self, name: str, env: Env = None) -> list[str]:
        return [each["state"] for each in self.stages(name, env).values()]

    def jobs(self, name: str) -> dict[str, str]:
        return {stage: each["job"] for stage, each in self.stages(name).items() if each["job"]}

    def queued(self, name: str) -> list[str]:
        """Job ids whose name is of a stage of this run and that wait or run; not those that are being cleaned up."""
        lines = self.slurm.run("squeue", "-h", "-t", "PENDING,RUNNING", "-o", "%i %j").stdout.splitlines()
        return [job for job, _, what in (line.partition(" ") for line in lines) if what.endswith(f"_{name}")]

    def wait_for_state(self, name: str, stage: str, state: str, seconds: float = 60) -> dict[str, Any]:
        """Wait until status gives a stage this state."""
        end = time.monotonic() + seconds
        while (found := self.stages(name)[stage])["state"] != state:
            assert time.monotonic() < end, found
            time.sleep(0.3)
        return found


def faulty_commands(slurm: Slurm, folder: Path, fault: str) -> dict[str, str]:
    """The environment in which a fault such as sbatch-2-after happens."""
    names = ["sbatch", "scontrol", "squeue", "scancel"]
    folder.mkdir(parents=True)
    for name in names:
        path = folder / name
        path.write_text(WRAPPER.format(name=name, real=f"/usr/bin/{name}"))
        path.chmod(0o755)
    return {"FAULTS": str(folder), "FAULT": fault, "PATH": f"{folder}:{slurm.env['PATH']}"}
