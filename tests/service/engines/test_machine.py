from pathlib import Path

import pytest
import torch

from service.bundle.engine_kind import REFERENCE, EngineKind
from service.engines import machine
from service.engines.machine import available

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")


@pytest.fixture(autouse=True)
def everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that the machine has bfloat16 and OpenVINO."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
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


def test_a_gpu_runs_torch_only() -> None:
    """OpenVINO is used on the CPU."""
    assert available(GPU) == [EngineKind("torch", "bf16"), REFERENCE]


def test_torch_and_linux_agree_about_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """bfloat16 is available exactly if /proc/cpuinfo lists its instructions."""
    monkeypatch.undo()
    flags = Path("/proc/cpuinfo").read_text().split()

    assert (EngineKind("torch", "bf16") in available(CPU)) == ("avx512_bf16" in flags or "amx_tile" in flags)
