"""What the clock and the machine say in a stage's metrics: no comparison of two runs looks at it."""

from typing import Any

CLOCK = (
    "time", "step_time", "reward_time", "train_runtime", "train_samples_per_second", "train_steps_per_second",
    "samples_per_second", "tokens_per_second", "useful_tokens_per_second", "tflops", "memory_peak_gib",
)  # fmt: skip


def assert_speed_is_logged(lines: list[dict[str, Any]]) -> None:
    """Every log of training says how fast it was."""
    logs = [line for line in lines if "grad_norm" in line]
    assert logs
    for line in logs:
        assert 0 < line["useful_tokens_per_second"] <= line["tokens_per_second"], line
        assert line["samples_per_second"] > 0 and line["tflops"] > 0, line
