"""What this machine has for a recipe: Python, packages, GPUs, 4-bit kernels, room, caches; each failure with its fix.

python -m pipeline.submit.environment     prints what torch says of this machine, as JSON
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.recipe import Recipe
from pipeline.run import HOME, RunDir
from pipeline.submit.doctor import Check
from pipeline.training.hub import check_cached

LEAST_GB = 10.0
"""Room below which a run is likely to fill the disk."""
TORCH_SECONDS = 180.0


def checks(recipe: Recipe, run: RunDir) -> list[Check]:
    """All that was looked at."""
    return [check_python(), *check_pins(HOME / "requirements.txt"), *check_torch(recipe, ask_torch()),
            check_room(run.root), check_cache(recipe, run), check_tracking(recipe)]  # fmt: skip


def check_python() -> Check:
    """The version of Python."""
    found = ".".join(map(str, sys.version_info[:3]))
    good = sys.version_info >= (3, 11)
    return Check("Python", good, found, "" if good else "install Python 3.11 or newer, delete .venv, run again")


def check_pins(requirements: Path) -> list[Check]:
    """Every pinned package against what is installed."""
    pins = re.findall(r"^([\w.-]+)==(\S+)", requirements.read_text(encoding="utf-8"), re.MULTILINE)
    wrong = [f"{name} {_installed(name) or 'absent'} (pinned {pin})" for name, pin in pins if _installed(name) != pin]
    fix = f"pip install -r {requirements.name}"
    return [Check("packages", not wrong, "; ".join(wrong) or f"{len(pins)} as pinned", fix if wrong else "")]


def _installed(package: str) -> str | None:
    try:
        return version(package).partition("+")[0]
    except PackageNotFoundError:
        return None


def ask_torch() -> dict[str, Any] | str:
    """What torch says of this machine, from a process of its own; in words why it says nothing."""
    command = [sys.executable, "-m", "pipeline.submit.environment"]
    try:
        done = subprocess.run(command, cwd=HOME, capture_output=True, text=True, timeout=TORCH_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"torch did not load within {TORCH_SECONDS:.0f} s"
    lines = (done.stderr.strip() or "no reason").splitlines()
    if done.returncode:
        return lines[-1]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def check_torch(recipe: Recipe, found: dict[str, Any] | str) -> list[Check]:
    """GPUs and their formats against what the recipe asks for, and bitsandbytes where it is needed."""
    if isinstance(found, str):
        return [Check("torch", False, found, "pip install -r requirements.txt")]
    asked = max((recipe.resources[entry.name].gpus for entry in recipe.stages), default=0)
    gpus = found["gpus"]
    told = ", ".join(f"{gpu['name']} {gpu['gb']:.0f} GB" for gpu in gpus) or "no GPU"
    enough = True if len(gpus) >= asked else None
    fix = "" if enough else f"the recipe asks for {asked}: run it on another machine, or lower resources.*.gpus"
    made = [Check("GPUs", enough, f"{told} (torch {found['torch']})", fix)]
    if gpus and recipe.model.precision == "bf16":
        has = all(gpu["bf16"] for gpu in gpus)
        made.append(Check("bf16", has, "there" if has else "not on these GPUs", "" if has else "model.precision=auto"))
    if recipe.model.quantization != "none":
        problem = found["four_bit"]
        fix = "pip install -r requirements.txt; see bitsandbytes' page on CUDA versions" if problem else ""
        made.append(Check("4-bit weights", not problem, problem or "pack and unpack", fix))
    return made


def check_room(root: Path) -> Check:
    """Free disk under which runs write."""
    free = shutil.disk_usage(root).free / 1e9
    writable = os.access(root, os.W_OK)
    good = free >= LEAST_GB and writable
    fix = "" if good else "set output_root in configs/cluster.yaml to a folder with room"
    return Check("disk", good, f"{free:.0f} GB free under {root}" + ("" if writable else ", not writable"), fix)


def check_cache(recipe: Recipe, run: RunDir) -> Check:
    """Models and data of the hub that jobs without network need."""
    try:
        check_cached(recipe, run, os.environ, data=True)
    except UserError as error:
        return Check("model and data", False, str(error).splitlines()[0], f"python -m pipeline prefetch {recipe.name}")
    return Check("model and data", True, "here, or in the cache")


def check_tracking(recipe: Recipe) -> Check:
    """Whether W&B can be reached as the recipe asks."""
    if "wandb" not in recipe.tracking.report_to or (os.environ.get("WANDB_MODE") or recipe.tracking.mode) != "online":
        return Check("tracking", True, ", ".join(recipe.tracking.report_to) or "metrics.jsonl alone")
    files = (Path.home() / ".netrc", Path.home() / "_netrc")
    known = bool(os.environ.get("WANDB_API_KEY")) or any(
        path.is_file() and "wandb" in path.read_text(encoding="utf-8") for path in files
    )
    return Check("tracking", known, "wandb online", "" if known else "wandb login, or tracking.mode=offline")


def main() -> None:
    """Print what torch says."""
    import torch

    gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    told = [{"name": gpu.name, "gb": gpu.total_memory / 1e9, "bf16": gpu.major >= 8} for gpu in gpus]
    print(json.dumps({"torch": torch.__version__, "gpus": told, "four_bit": _four_bit(torch)}))


def _four_bit(torch: Any) -> str:
    """Why packed 4-bit weights do not work here; empty when they do."""
    try:
        from bitsandbytes import functional
    except (ImportError, RuntimeError, OSError) as error:
        return str(error).splitlines()[0]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    weights = torch.linspace(-1, 1, 4096, device=device).reshape(64, 64)
    packed, state = functional.quantize_4bit(weights, quant_type="nf4", compress_statistics=True)
    far = float((functional.dequantize_4bit(packed, state) - weights).abs().max())
    return "" if far < 0.2 else f"weights come back {far:.2f} off"


if __name__ == "__main__":
    main()
