"""Says what an exception of a case means: the device failed, memory ran out, the scan is at fault, or none of these."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from service.errors import CalibrantError, DeviceUnavailable, InferenceOutOfMemory
from service.executors.memory import ran_out_of_memory

if TYPE_CHECKING:
    import torch

_OF_THE_DEVICE: Final = ("CUDA error", "CUDA driver error", "CUBLAS", "cuBLAS", "CUDNN", "cuDNN", "CUFFT", "cuFFT")
"""Parts of the messages of torch's errors."""


def explain(error: Exception, device: "torch.device", name: str, memory_bytes: int) -> CalibrantError | None:
    """Return the error of ours that an exception of a case means; None for one that nobody foresaw.

    Args:
        error: that ended the case.
        device: that computed it.
        name: of the device.
        memory_bytes: memory that the process may use.
    """
    if device_failed(error):
        return DeviceUnavailable(f"{name} failed during the case ({type(error).__name__}).")
    if isinstance(error, CalibrantError):
        return error
    if device_ran_out_of_memory(error):
        _release(error)
        return InferenceOutOfMemory(_device_is_full(device, name))
    if ran_out_of_memory(error):
        return InferenceOutOfMemory(
            f"The case needs more than the {memory_bytes / (1 << 30):.1f} GiB that inference may use. "
            "Crop or downsample the scan, or ask the operator for more (CALIBRANT_MEMORY_BYTES)."
        )
    return None


@contextmanager
def explained(device: "torch.device", name: str, memory_bytes: int) -> Iterator[None]:
    """Raise what `explain` makes of an exception instead of it, for a command that computes in its own process."""
    try:
        yield
    except Exception as error:
        ours = explain(error, device, name, memory_bytes)
        if ours is None or ours is error:
            raise
        raise ours from error


def device_failed(error: BaseException) -> bool:
    """Return whether an exception, or one that led to it, is an error of a GPU: its process computes nothing right any more.

    torch has an exception class for it (2.8 and later), and plain RuntimeErrors of CUDA's libraries.
    """
    return any(_is_fault(one) for one in _chain(error))


def device_ran_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception means that the memory of a GPU ran out; its process can go on."""
    from service.pipeline.memory import ran_out

    return isinstance(error, RuntimeError) and ran_out(error)


def _is_fault(error: BaseException) -> bool:
    import torch

    if device_ran_out_of_memory(error):
        return False
    if isinstance(error, torch.AcceleratorError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _OF_THE_DEVICE)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _release(error: BaseException) -> None:
    """Free what the functions held that the exception passed through: the tensors of the case."""
    for one in _chain(error):
        traceback.clear_frames(one.__traceback__)


def _device_is_full(device: "torch.device", name: str) -> str:
    import torch

    found = ""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        free, total = (size / (1 << 30) for size in torch.cuda.mem_get_info(device))
        found = f": {free:.1f} of its {total:.1f} GiB are free between cases"
    return (
        f"The case needs more memory than {name} has{found}. "
        "Crop or downsample the scan, or ask the operator for a device that has more, or that other programs do not use."
    )
