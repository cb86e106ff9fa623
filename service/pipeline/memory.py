"""What a stage does when a GPU's memory runs out: the same once more with less of it there, at last on the CPU."""

from collections.abc import Callable, Sequence
from typing import Final, Literal, TypeVar

import structlog
import torch

log = structlog.get_logger(__name__)

ComputedOn = Literal["device", "device, sums on the CPU", "CPU"]
"""Where a case was computed: wholly on the device; the network there but the sums on the CPU; or wholly on the CPU."""

_LIBRARIES: Final = ("CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
"""What NVIDIA's libraries say if they find no memory; torch then raises a plain RuntimeError."""

_T = TypeVar("_T")


def within_memory(
    device: torch.device, attempts: Sequence[tuple[ComputedOn, Callable[[], _T]]]
) -> tuple[_T, ComputedOn]:
    """Return what the first attempt that finds enough memory returns, and where that attempt computes.

    Args:
        device: a CPU takes the first attempt only: it has no other memory to go to.
        attempts: each needs less of the device's memory than the one before.
    """
    *others, last = attempts if device.type != "cpu" else attempts[:1]
    for computed_on, attempt in others:
        try:
            return attempt(), computed_on
        except RuntimeError as error:
            if not ran_out(error):
                raise
        # Only here, where the error no longer holds the frames that hold the arrays.
        torch.cuda.empty_cache()
        log.warning("the device's memory ran out; trying with less of it", device=str(device))
    computed_on, attempt = last
    return attempt(), computed_on


def ran_out(error: RuntimeError) -> bool:
    """Return whether an error says that a GPU's memory ran out."""
    full = isinstance(error, torch.AcceleratorError) and "out of memory" in str(error)
    return full or isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in _LIBRARIES)
