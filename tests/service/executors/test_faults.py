import pytest
import torch

from service.errors import CalibrantError, ConstantVolume, DeviceUnavailable, InferenceOutOfMemory
from service.executors.faults import device_failed, device_ran_out_of_memory, explain

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")

OF_THE_DEVICE = [
    torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("CUDA error: unspecified launch failure"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    RuntimeError("CUDA driver error: device not ready"),
]

OF_ITS_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
    torch.AcceleratorError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
]


@pytest.mark.parametrize("error", OF_THE_DEVICE, ids=str)
def test_an_error_of_the_device_is_recognised(error: Exception) -> None:
    """Whichever library of CUDA raised it; the sentence holds its type and not its message."""
    explained = explain(error, CPU, "cuda:1", 1 << 30)

    assert isinstance(explained, DeviceUnavailable)
    assert explained.detail == f"cuda:1 failed during the case ({type(error).__name__})."


def test_an_error_of_the_device_is_recognised_behind_another() -> None:
    """An error that was raised while the device's was handled does not hide it."""

    def compute() -> None:
        try:
            raise OF_THE_DEVICE[0]
        finally:
            msg = "cleaning up failed"
            raise ValueError(msg)

    with pytest.raises(ValueError, match="cleaning up") as caught:
        compute()

    assert device_failed(caught.value)


@pytest.mark.parametrize("error", OF_ITS_MEMORY, ids=str)
def test_a_full_device_is_not_a_failed_one(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sentence gives the device's memory, and no setting of the processor's."""
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda _: (3 << 30, 80 << 30))
    explained = explain(error, GPU, "cuda:0", 1 << 30)

    assert device_ran_out_of_memory(error)
    assert not device_failed(error)
    assert isinstance(explained, InferenceOutOfMemory)
    assert "more memory than cuda:0 has: 3.0 of its 80.0 GiB are free" in explained.detail
    assert "CALIBRANT_MEMORY_BYTES" not in explained.detail


def test_a_full_device_lets_go_of_what_the_case_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tensors of the case are freed before the free memory is read."""
    freed: list[int] = []
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda _: (sum(freed) << 30, 80 << 30))

    class Tensor:
        def __del__(self) -> None:
            freed.append(1)

    def compute() -> None:
        tensor = Tensor()
        raise OF_ITS_MEMORY[0] from ValueError(str(type(tensor)))

    with pytest.raises(torch.OutOfMemoryError) as caught:
        compute()
    explained = explain(caught.value, GPU, "cuda:0", 1 << 30)

    assert explained is not None
    assert "1.0 of its 80.0 GiB" in explained.detail


def test_a_processor_without_memory_is_said_by_its_setting() -> None:
    """The limit of the processor's memory has a setting."""
    explained = explain(MemoryError(), CPU, "cpu", 3 << 29)

    assert isinstance(explained, InferenceOutOfMemory)
    assert "more than the 1.5 GiB" in explained.detail
    assert "CALIBRANT_MEMORY_BYTES" in explained.detail


def test_other_errors_stay_what_they_are() -> None:
    """Errors of ours keep their class, and those that nobody foresaw are not explained."""
    ours: CalibrantError = ConstantVolume("All voxels are 42.")

    assert explain(ours, CPU, "cpu", 1 << 30) is ours
    assert explain(ValueError("CUDA error: no RuntimeError"), CPU, "cpu", 1 << 30) is None
    assert explain(RuntimeError("shapes cannot be multiplied"), CPU, "cpu", 1 << 30) is None
