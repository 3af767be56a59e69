"""The generation server of a GRPO stage: `trl vllm-serve` beside the training processes, on GPUs of its own.

Neither outlives the other: a server that ends or falls silent ends the stage, and it ends with the job body.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from pipeline.errors import StageFailed, UserError
from pipeline.recipe import Recipe
from pipeline.recipe_rl import Grpo
from pipeline.run import RunDir
from pipeline.training.launchers import free_port, gpus_at_hand
from pipeline.training.models import base_source
from pipeline.training.ranks import die_with_parent

URL = "RLC_GENERATION_URL"
"""Environment variable with the server's address, for the ranks."""
GROUP_PORT = "RLC_GENERATION_PORT"
"""Environment variable with the port at which new weights are handed over."""
START_SECONDS = 1800.0
"""Longest time until a server answers: large weights come from slow disks."""
LOOK_SECONDS = 10.0
SILENT_LOOKS = 6
"""Looks in a row without an answer after which a server is taken for dead."""
END_SECONDS = 20.0


def is_served(recipe: Recipe, stage: str) -> bool:
    """Whether a stage's completions come from a server that its job starts."""
    return getattr(recipe.own(stage), "generation", "") == "vllm-server"


def server_command(recipe: Recipe, run: RunDir, stage: str, port: int) -> list[str]:
    """The command line of a stage's server, on loopback."""
    own: Grpo = recipe.own(stage)
    precision = {"auto": "auto", "fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}[recipe.model.precision]
    command = [str(Path(sys.executable).with_name("trl")), "vllm-serve", "--model", base_source(recipe, run)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", precision]
    command += ["--tensor_parallel_size", str(own.generation_gpus)]
    return [*command, *(["--revision", recipe.model.revision] if recipe.model.revision else [])]


def share_gpus(own: Grpo, stage: str) -> tuple[str, str]:
    """CUDA_VISIBLE_DEVICES of the training processes and of the server. Raises UserError when none is left to train."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    gpus = listed.split(",") if listed else [str(index) for index in range(gpus_at_hand())]
    if len(gpus) <= own.generation_gpus:
        raise UserError(
            f"{own.generation_gpus} GPU(s) for generation leave none of these to train on", value=len(gpus),
            where=f"{stage}.generation_gpus", do=f"raise resources.{stage}.gpus, or use generation: vllm-colocate",
        )  # fmt: skip
    return ",".join(gpus[: -own.generation_gpus]), ",".join(gpus[-own.generation_gpus :])


def check_served(recipe: Recipe) -> None:
    """Raise UserError for a stage whose server and training processes do not share out its GPUs."""
    for name in recipe.training_stages():
        resources = recipe.resources[name]
        if not is_served(recipe, name):
            continue
        training = resources.gpus - recipe.own(name).generation_gpus
        if resources.nodes > 1 or training < 1 or resources.processes != training:
            raise UserError(
                f"generation vllm-server shares the {resources.gpus} GPUs of one node with processes that train, not",
                value=resources.processes or "one a GPU", where=f"resources.{name}.processes",
                do=f"set it to gpus less generation_gpus ({max(1, training)}), nodes to 1, launcher to torchrun",
            )  # fmt: skip


class Server:
    """A server process, and a watch over it that calls `on_death` with the reason, once."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], url: str, log: Path,
        on_death: Callable[[str], None], look_seconds: float = LOOK_SECONDS,
    ) -> None:  # fmt: skip
        self.url, self.log, self.on_death, self.look_seconds = url, log, on_death, look_seconds
        self.failure = ""
        self._over = threading.Event()
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                command, env=dict(environment), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                start_new_session=True, preexec_fn=die_with_parent,
            )  # fmt: skip

    def answers(self) -> bool:
        """Whether it says that it is well."""
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=self.look_seconds) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            return False

    def wait(self, seconds: float = START_SECONDS) -> None:
        """Wait until it answers, then watch it. Raises StageFailed when it ends or does not answer in time."""
        end = time.monotonic() + seconds
        while not self.answers():
            if self.process.poll() is not None or time.monotonic() > end:
                raise self._failed(f"did not answer within {seconds:.0f} s")
            time.sleep(min(0.2, self.look_seconds))
        threading.Thread(target=self._watch, daemon=True).start()

    def _failed(self, otherwise: str) -> StageFailed:
        code = self.process.poll()
        lines = self.log.read_text(encoding="utf-8", errors="replace").split("\n")
        last = next((line for line in reversed(lines) if line.strip()), "")
        return StageFailed(
            f"the generation server {otherwise if code is None else f'ended with {code}'}", value=last[-200:],
            where=str(self.log), do="read this log; generation: transformers needs no server",
        )  # fmt: skip

    def _watch(self) -> None:
        silent = 0
        while not self._over.wait(self.look_seconds):
            silent = 0 if self.answers() else silent + 1
            if self.process.poll() is not None or silent >= SILENT_LOOKS:
                self.failure = str(self._failed("does not answer any more"))
                if not self._over.is_set():
                    self.on_death(self.failure)
                return

    def end(self) -> None:
        """End the server and what it started."""
        self._over.set()
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(END_SECONDS)


@contextlib.contextmanager
def serving(
    recipe: Recipe, run: RunDir, stage: str, environment: Mapping[str, str], log: Path, on_death: Callable[[str], None]
) -> Iterator[tuple[dict[str, str], Server | None]]:
    """(the environment of the training processes, the server if there is one) while the stage trains.

    Raises StageFailed when the server does not come up.
    """
    if not is_served(recipe, stage):
        yield dict(environment), None
        return
    training, generating = share_gpus(recipe.own(stage), stage)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = server_command(recipe, run, stage, port)
    server = Server(command, {**environment, "CUDA_VISIBLE_DEVICES": generating}, url, log, on_death)
    try:
        server.wait()
        told = {URL: url, GROUP_PORT: str(free_port())}
        yield {**environment, "CUDA_VISIBLE_DEVICES": training, **told}, server
    finally:
        server.end()
