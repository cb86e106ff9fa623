from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from service.bundle.card import Precision
from service.bundle.engine_kind import REFERENCE, EngineKind
from service.engines import machine
from service.engines.machine import available, device_kind, prepare, synchronise, to_host, windows_at_a_time

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")
FLOAT32 = [torch.backends.cuda.matmul, torch.backends.cudnn.conv]  # type: ignore[attr-defined]  # torch's types lack it


@pytest.fixture(name="restored")
def restored_() -> Iterator[None]:
    """Restore what `prepare` sets for the whole process."""
    cudnn = torch.backends.cudnn
    precisions = [operations.fp32_precision for operations in FLOAT32]
    benchmark, deterministic = cudnn.benchmark, cudnn.deterministic
    yield
    for operations, precision in zip(FLOAT32, precisions, strict=True):
        operations.fp32_precision = precision
    cudnn.benchmark, cudnn.deterministic = benchmark, deterministic


@pytest.fixture(autouse=True)
def everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that the machine has bfloat16 and OpenVINO."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (9, 0))
    monkeypatch.setattr(machine, "find_spec", lambda name: name)


def test_a_cpu_with_everything_runs_every_engine_kind() -> None:
    """The fastest come first, the reference last."""
    names = [engine_kind.name for engine_kind in available(CPU)]
    assert names == ["openvino-bf16", "torch-bf16", "openvino-fp32", "torch-fp32"]


def test_without_the_package_there_is_no_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO is an optional package."""
    monkeypatch.setattr(machine, "find_spec", lambda _name: None)

    assert available(CPU) == [EngineKind("torch", "bf16"), REFERENCE]


def test_a_cpu_without_bfloat16_runs_float32_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Emulated bfloat16 is slower than float32."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)

    assert available(CPU) == [EngineKind("openvino", "fp32"), REFERENCE]


@pytest.mark.parametrize(
    ("capability", "precisions"),
    [((9, 0), ["bf16", "fp16"]), ((8, 0), ["bf16", "fp16"]), ((7, 5), ["fp16"]), ((7, 0), ["fp16"]), ((6, 1), [])],
    ids=str,
)
def test_a_gpu_runs_what_its_arithmetic_units_have(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], precisions: list[Precision]
) -> None:
    """OpenVINO is used on the CPU; Turing and Volta have float16 but emulate bfloat16, and older ones have neither."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability if device == GPU else None)

    assert available(GPU) == [*(EngineKind("torch", precision) for precision in precisions), REFERENCE]


def test_a_gpu_computes_several_windows_at_a_time() -> None:
    """Four of 96^3 voxels, up to eight smaller ones, one larger; a CPU one."""
    edges = (40, 80, 96, 128, 256)
    assert [windows_at_a_time(GPU, (n, n, n)) for n in edges] == [8, 6, 4, 1, 1]
    assert windows_at_a_time(CPU, (8, 8, 8)) == 1


def test_a_cpu_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a GPU returns before it has computed; what is in the CPU's memory is not copied."""
    waited: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    array = torch.zeros(3)

    synchronise(CPU)
    synchronise(GPU)

    assert waited == [GPU]
    assert to_host(array) is array


@pytest.mark.gpu
def test_a_copy_in_page_locked_memory_is_equal(gpu_device: torch.device) -> None:
    """Values and strides are those of the array on the device."""
    array = torch.arange(24, device=gpu_device).view(2, 3, 4).permute(2, 1, 0)

    copied = to_host(array)

    assert copied.device == CPU
    assert copied.is_pinned() == (gpu_device.type == "cuda")
    assert copied.stride() == array.stride()
    assert torch.equal(copied, array.cpu())


def test_torch_and_linux_agree_about_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """bfloat16 is available exactly if /proc/cpuinfo lists its instructions."""
    monkeypatch.undo()
    flags = Path("/proc/cpuinfo").read_text().split()

    assert (EngineKind("torch", "bf16") in available(CPU)) == ("avx512_bf16" in flags or "amx_tile" in flags)


def test_a_device_kind_names_what_rounds_alike() -> None:
    """All CPUs are one kind; GPUs are told apart by their compute capability."""
    assert device_kind(CPU) == "cpu"
    assert device_kind(GPU) == "cuda-9.0"


@pytest.mark.usefixtures("restored")
def test_float32_on_a_gpu_is_float32() -> None:
    """TF32 is off for convolutions and products, and no timing chooses an algorithm."""
    torch.backends.cudnn.benchmark = True

    prepare(GPU)

    assert [operations.fp32_precision for operations in FLOAT32] == ["ieee", "ieee"]
    assert not torch.backends.cudnn.benchmark
    assert torch.backends.cudnn.deterministic


@pytest.mark.usefixtures("restored")
def test_on_a_cpu_nothing_is_set() -> None:
    """A process that computes on the CPU keeps torch's defaults."""
    torch.backends.cudnn.benchmark = True

    prepare(CPU)

    assert torch.backends.cudnn.benchmark
