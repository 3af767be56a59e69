"""What a failure is taken for, from what the real exceptions print; and the change that follows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.load import load_recipe
from pipeline.remedies import Remedy, apply, more_memory, propose
from pipeline.run import HOME, RunDir
from pipeline.training.failures import Failure, classify, oom_kills, read_logs

RAISED = {
    "GPU memory": [
        "import torch; raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB.')",
        "import torch; raise torch.cuda.OutOfMemoryError('CUDA out of memory. Tried to allocate 20.00 MiB')",
        "import torch; raise torch.AcceleratorError('CUDA error: out of memory')",
        "raise RuntimeError('CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`')",
    ],
    "memory": [
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30)); bytearray(1 << 40)",
        "import resource, torch; resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30)); torch.ones(1 << 38)",
        "raise MemoryError",
    ],
    "node": [
        "import torch; raise torch.AcceleratorError('CUDA error: uncorrectable ECC error encountered')",
        "raise RuntimeError('No CUDA GPUs are available')",
        "raise OSError(5, 'Input/output error', '/dev/shm/x')",
        "raise OSError(116, 'Stale file handle')",
    ],
    "network": [
        "import torch.distributed as d; raise d.DistBackendError('NCCL error in: ProcessGroupNCCL.cpp:2000, remote')",
        "import torch.distributed as d; d.TCPStore('127.0.0.1', 1, 2, False, timeout=__import__('datetime')"
        ".timedelta(seconds=1))",
    ],
}
OTHERS = [
    "raise ValueError('CUDA out of memory is what this text says')",
    "{}['key']",
    "import torch; torch.ones(2) @ torch.ones(3)",
    "raise OSError(28, 'No space left on device')",
    "raise SystemExit(1)",
]


def printed(code: str) -> str:
    """What Python says when this code ends it."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 1, done
    return done.stderr


@pytest.mark.parametrize(("kind", "code"), [(kind, code) for kind, codes in RAISED.items() for code in codes])
def test_real_exceptions_are_told_apart(kind: str, code: str) -> None:
    text = printed(code)
    found = classify([text])
    assert found is not None and found.kind == kind, text
    assert found.evidence in text


@pytest.mark.parametrize("code", OTHERS)
def test_what_no_change_mends_is_left_alone(code: str) -> None:
    assert classify([printed(code)]) is None


def test_a_broken_network_is_the_consequence_of_a_mistake_elsewhere() -> None:
    network, mistake = printed(RAISED["network"][0]), printed(OTHERS[1])
    memory = printed(RAISED["GPU memory"][0])
    assert classify([network, mistake]) is None
    found = classify([network, memory])
    assert found is not None and found.kind == "GPU memory"
    prefixed = "".join(f"[rank1]: {line}\n" for line in network.splitlines())
    found = classify(["step 3/10\n", prefixed])
    assert found is not None and found.kind == "network"


def test_a_process_that_the_kernel_killed_says_nothing_itself() -> None:
    assert classify(["step 1/10\n"]) is None
    found = classify(["step 1/10\n"], oom_killed=True)
    assert found is not None and found.kind == "memory"
    found = classify(["srun: error: n2: task 1: Out Of Memory\n"])
    assert found is not None and found.kind == "memory"


def test_srun_names_the_node_that_is_gone() -> None:
    told = "srun: error: Task launch for StepId=4.1 failed on node n2: Communication connection failure\n"
    found = classify([printed(RAISED["network"][0]) + told])
    assert found is not None and (found.kind, found.node) == ("node", "n2")


def test_kills_are_counted_in_the_control_group(tmp_path: Path) -> None:
    group, proc = tmp_path / "memory" / "slurm" / "job_7", tmp_path / "cgroup"
    group.mkdir(parents=True)
    (group / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n")
    proc.write_text("5:cpuset:/\n4:cpu,memory:/slurm/job_7\n")
    assert oom_kills(proc, tmp_path) == 2
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "memory.events").write_text("low 0\noom 3\noom_kill 1\n")
    proc.write_text("0::/job\n")
    assert oom_kills(proc, tmp_path) == 1
    assert oom_kills(tmp_path / "absent", tmp_path) == 0
    proc.write_text("0::/gone\n")
    assert oom_kills(proc, tmp_path) == 0


def test_logs_of_all_ranks_are_read(tmp_path: Path) -> None:
    (tmp_path / "rank0.out").write_text("a" * 300_000 + "end")
    (tmp_path / "rank1.out").write_bytes(b"\xff one")
    first, second = read_logs(tmp_path)
    assert len(first) == 200_000 and first.endswith("end") and second.endswith(" one")


def remedy(stage: str, failure: Failure | str, before: tuple[Remedy, ...] = (), *changes: str) -> Remedy | None:
    recipe = apply(load_recipe(HOME / "configs" / "tiny.yaml", changes), before)
    return propose(recipe, stage, 1, str(failure), "evidence", "n7", before)


def test_each_failure_has_its_change() -> None:
    recipe = load_recipe(HOME / "configs" / "tiny.yaml")
    micro, memory = recipe.own("sft").micro_batch_size, recipe.resources["sft"].memory
    found = {kind: remedy("sft", kind) for kind in ("GPU memory", "memory", "node", "network")}
    told = {kind: (each.key, each.before, each.after, each.same_job) for kind, each in found.items() if each}
    assert told == {
        "GPU memory": ("sft.micro_batch_size", micro, micro // 2, True),
        "memory": ("resources.sft.memory", memory, more_memory(memory), False),
        "node": ("resources.sft.exclude", [], ["n7"], False),
        "network": ("resources.sft.debug", False, True, True),
    }
    evaluation = remedy("evaluate", "GPU memory")
    assert evaluation and evaluation.key == "evaluate.batch_size"


def test_changes_are_bounded() -> None:
    first = remedy("sft", "network")
    assert first and remedy("sft", "network", (first,)) is None, "one retry with debug settings, not more"
    assert remedy("sft", "GPU memory", (), "sft.micro_batch_size=1") is None
    assert remedy("preprocess", "GPU memory") is None
    assert remedy("sft", "memory", (), "resources.sft.remedies=0") is None
    assert remedy("sft", "memory", (first,), "resources.sft.remedies=1") is None


@pytest.mark.parametrize(("before", "after"), [("8G", "12G"), ("3G", "5G"), ("200M", "300M"), ("1T", "2T")])
def test_more_memory(before: str, after: str) -> None:
    assert more_memory(before) == after


def test_a_remedy_holds_until_somebody_sets_another_value(tmp_path: Path) -> None:
    run = RunDir(tmp_path, "r")
    recipe = load_recipe(HOME / "configs" / "tiny.yaml", ["sft.micro_batch_size=8", "sft.global_batch_size=16"])
    run.write_resolved(recipe, {})
    first = propose(recipe, "sft", 1, "GPU memory", "e", "", [])
    assert first is not None
    run.add_remedy(first)
    once = run.read_resolved()[0]
    second = propose(once, "sft", 2, "GPU memory", "e", "", run.remedies("sft"))
    assert second is not None and (second.before, second.after) == (4, 2)
    run.add_remedy(second)
    assert run.read_resolved()[0].own("sft").micro_batch_size == 2
    run.write_resolved(run.read_resolved()[0], {})
    assert run.read_resolved()[0].own("sft").micro_batch_size == 2, "applied once, not again to its own result"
    other = load_recipe(HOME / "configs" / "tiny.yaml", ["sft.micro_batch_size=16", "sft.global_batch_size=16"])
    assert run.with_remedies(other) == other
    assert [event["change"] for event in run.events()] == [
        "after attempt 1 (GPU memory): sft.micro_batch_size 8 -> 4",
        "after attempt 2 (GPU memory): sft.micro_batch_size 4 -> 2",
    ]
