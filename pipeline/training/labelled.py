"""The output layer works where there is something to learn: SFT reads its loss at labelled positions alone."""

from __future__ import annotations


def score_labelled_positions() -> None:
    """Let TRL's SFT loss leave out positions without a label, as it does on GPUs, on CPUs too.

    TRL 1.16 scores every position where there is no Triton (for devices that compile anew for each number of rows,
    which CPUs do not) and multiplies those without a label by zero: on prompts several times as long as their
    completions that is most of the output layer's work. The loss is the same.
    """
    from trl.trainer import utils
    from trl.trainer.utils import _use_triton as on_gpu

    utils._use_triton = lambda device: device.type == "cpu" or on_gpu(device)  # the kernels have a name of their own
