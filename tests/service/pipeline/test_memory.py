import gc
import weakref

import pytest
import structlog
import torch

from service.pipeline.memory import ran_out, within_memory

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")


def full() -> str:
    """Find no memory."""
    raise torch.OutOfMemoryError


def test_each_attempt_is_made_after_the_one_before_found_no_memory() -> None:
    """The first that succeeds says where it computed; the log says that memory ran out."""
    with structlog.testing.capture_logs() as logs:
        outcome = within_memory(GPU, [("device", full), ("device, sums on the CPU", full), ("CPU", lambda: "done")])

    assert outcome == ("done", "CPU")
    assert [line["device"] for line in logs] == ["cuda:0", "cuda:0"]


def test_the_last_attempt_fails_for_good() -> None:
    """If even the CPU has no memory for it the case fails."""
    with pytest.raises(torch.OutOfMemoryError):
        within_memory(GPU, [("device", full), ("CPU", full)])


def test_a_cpu_has_no_other_memory_to_go_to() -> None:
    """Its first attempt is the only one."""
    with pytest.raises(torch.OutOfMemoryError):
        within_memory(CPU, [("device", full), ("CPU", lambda: "done")])


@pytest.mark.parametrize("error", [RuntimeError("CUDA error: an illegal memory access was encountered"), ValueError()])
def test_any_other_error_ends_the_case(error: Exception) -> None:
    """A poisoned device is not asked again."""

    def fail() -> str:
        raise error

    with pytest.raises(type(error)):
        within_memory(GPU, [("device", fail), ("CPU", lambda: "done")])


def test_what_a_failed_attempt_held_is_freed_before_the_next() -> None:
    """An error holds the frames it passed, and they the arrays: the next attempt must not start with those in memory."""
    held: list[weakref.ref[torch.Tensor]] = []

    def fail() -> bool:
        array = torch.zeros(3)
        held.append(weakref.ref(array))
        raise torch.OutOfMemoryError

    gc.disable()
    try:
        freed, _ = within_memory(GPU, [("device", fail), ("CPU", lambda: held[0]() is None)])
    finally:
        gc.enable()

    assert freed


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."), True),
        (torch.AcceleratorError("CUDA error: out of memory"), True),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), False),
    ],
    ids=str,
)
def test_nvidias_libraries_say_it_in_their_own_words(error: RuntimeError, expected: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """Not only torch's own allocator finds no memory."""
    assert ran_out(error) is expected
