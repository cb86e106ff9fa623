import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from service.engines import devices
from service.engines.devices import CPU, Device, claim, describe, devices_of, first_device
from service.errors import DeviceUnavailable, SettingsError

UUID = "MIG-5d1a3f54-5e2c-5b0a-9b3a-0c6a2e4f1b77"


@pytest.fixture(autouse=True)
def _four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3})
    for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("setting", "names"),
    [
        ("cpu", ["cpu"]),
        ("cuda", ["cuda:0"]),
        ("cuda:1", ["cuda:1"]),
        ("cuda:0,cuda:1", ["cuda:0", "cuda:1"]),
        (" cuda:0 , cpu ", ["cuda:0", "cpu"]),
        ("cpu*2", ["cpu", "cpu"]),
        ("cuda:0*2,cuda:3", ["cuda:0", "cuda:0", "cuda:3"]),
        (UUID, [UUID]),
    ],
)
def test_a_setting_names_a_device_for_each_process(setting: str, names: list[str]) -> None:
    """Several are separated by commas, and a number of processes follows a star."""
    assert [device.name for device in devices_of(setting)] == names


@pytest.mark.parametrize("setting", ["", "gpu", "cuda:", "cuda:x", "cpu*0", "cpu*", "cuda:0,,cpu", "auto,cpu", "meta"])
def test_a_setting_that_names_none_is_refused(setting: str) -> None:
    """The message says what was expected, and does not repeat what was given."""
    with pytest.raises(SettingsError, match=r"Expected cpu, cuda:0, .* or auto"):
        devices_of(setting)


def test_processes_on_the_processor_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """One takes all; of several each takes its share; OMP_NUM_THREADS is the share that an operator gives each."""
    assert devices_of("cpu") == (CPU,)
    assert [device.environment for device in devices_of("cpu*2")] == [{"OMP_NUM_THREADS": "2"}] * 2
    assert [device.environment for device in devices_of("cpu*8")] == [{"OMP_NUM_THREADS": "1"}] * 8
    assert devices_of("cuda:0,cpu")[1].environment == {}

    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert [device.environment for device in devices_of("cpu*2")] == [{}] * 2


def test_a_device_that_is_named_by_its_uuid_is_the_only_one_of_its_process() -> None:
    """CUDA calls it cuda:0 there; results carry the UUID."""
    (device,) = devices_of(UUID)

    assert (device.name, device.torch_name) == (UUID, "cuda:0")
    assert device.environment == {"CUDA_VISIBLE_DEVICES": UUID}


@pytest.mark.parametrize(
    ("smi", "torch_says", "names"),
    [
        (None, "2\n", ["cuda:0", "cuda:1"]),
        (None, "0\n", ["cpu"]),
        (None, None, ["cpu"]),
        ("GPU 0: NVIDIA H100 (UUID: GPU-1)\n", "1\n", ["cuda:0"]),
        (f"GPU 0: NVIDIA H100 (UUID: GPU-1)\n  MIG 3g.40gb Device 0: (UUID: {UUID})\n", "1\n", [UUID]),
    ],
)
def test_auto_is_every_device_of_the_machine(
    monkeypatch: pytest.MonkeyPatch, smi: str | None, torch_says: str | None, names: list[str]
) -> None:
    """Slices where a GPU is cut, otherwise the GPUs, otherwise the processor."""

    def run(command: list[str], **_: object) -> SimpleNamespace:
        said = smi if command[0] == "nvidia-smi" else torch_says
        if said is None:
            raise FileNotFoundError
        return SimpleNamespace(stdout=said)

    monkeypatch.setattr(subprocess, "run", run)

    assert [device.name for device in devices_of("auto")] == names


def test_auto_takes_no_slices_that_the_operator_has_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """With CUDA_VISIBLE_DEVICES only torch, which heeds it, is asked."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    monkeypatch.setattr(devices, "_slices", lambda: [UUID])
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(stdout="1\n"))

    assert [device.name for device in devices_of("auto")] == ["cuda:0"]


def test_the_processor_is_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A first computation on it comes out right, with the threads of its share."""
    monkeypatch.setenv("OMP_NUM_THREADS", "7")  # so that the test's change is undone

    assert claim(Device("cpu", threads=3)) == torch.device("cpu")
    assert os.environ["OMP_NUM_THREADS"] == "3"


@pytest.mark.parametrize(
    ("built", "count", "device", "why"),
    [
        (False, 0, "cuda:0", "is built without CUDA"),
        (True, 0, "cuda:0", "finds no CUDA device"),
        (True, 2, "cuda:2", "this machine has 2 CUDA devices, counted from cuda:0"),
        (True, 1, "cuda:0", r"the first computation on it failed \(AssertionError\)"),
        (True, 1, UUID, r"the first computation on it failed \(AssertionError\)"),
    ],
)
def test_a_missing_device_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, *, built: bool, count: int, device: str, why: str
) -> None:
    """The build of torch, the driver's devices, or their number; and what to set instead."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # so that the test's change is undone
    monkeypatch.setattr("torch.ones", refuse)
    monkeypatch.setattr("torch.backends.cuda.is_built", lambda: built)
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)

    with pytest.raises(DeviceUnavailable, match=f"^{device} cannot be used: .*{why}.* Choose cpu"):
        claim(Device(device))


def test_a_device_that_computes_wrongly_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sum of a convolution of ones is known: 27 voxels of 27."""
    monkeypatch.setattr("torch.nn.functional.conv3d", lambda *_: torch.full((3, 3, 3), 26.0))

    with pytest.raises(DeviceUnavailable, match=r"summed up to 702\.0, not 729"):
        claim(CPU)


def test_a_gpu_is_described(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Name, compute capability, memory and versions; a driver that does not say its version is unknown."""
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda _: (3 << 30, 80 << 30))
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr("torch.cuda.get_device_name", lambda _: "NVIDIA H100")
    monkeypatch.setattr("torch.version.cuda", "13.0")
    monkeypatch.setattr(devices, "DRIVER_FILE", tmp_path / "version")
    gpu = "NVIDIA H100, compute capability 9.0, 3.0 of 80.0 GiB free, driver {}, CUDA 13.0"
    assert describe(torch.device("cuda:0")) == gpu.format("unknown")

    for text in (
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.159.04  Tue Apr  2 10:00:00 UTC 2026\n",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build\n",
    ):
        (tmp_path / "version").write_text(text)
        assert describe(torch.device("cuda:0")) == gpu.format("580.159.04")


def test_the_processor_is_described() -> None:
    """Cores and threads."""
    assert describe(torch.device("cpu")) == f"4 cores, {torch.get_num_threads()} threads"


@pytest.mark.parametrize("setting", ["cpu", "cpu*2", "cpu,cpu", " cpu "])
def test_a_command_in_one_process_takes_the_first_device_with_all_cores(setting: str) -> None:
    """CALIBRANT_DEVICE may name several devices, of which `predict` and `verify-engine` use one."""
    assert first_device(setting) == CPU
