"""The devices that compute: what CALIBRANT_DEVICE names, and the first computation on one, which shows that it works."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from service.errors import DeviceUnavailable, SettingsError

if TYPE_CHECKING:
    import torch

AUTO: Final = "auto"

_ENTRY: Final = re.compile(r"(cpu|cuda(?::\d+)?|(?:MIG|GPU)-[0-9A-Za-z/-]+)(?:\*([1-9]\d?))?")
_MIG: Final = re.compile(r"UUID: (MIG-[0-9A-Za-z/-]+)")

_DRIVER: Final = re.compile(r"Kernel Module.*?\s(\d+\.\d[\d.]*)")
DRIVER_FILE: Final = Path("/proc/driver/nvidia/version")
"""Linux's file of the driver's version; the toolkit for containers shows it in them, too."""

_LIST: Final = "import torch; print(torch.cuda.device_count())"
LIST_DEADLINE_S: Final = 120.0
"""Seconds within which a process must have listed the CUDA devices."""

_ONES: Final = (5, 3)
"""Edges of an image and of a kernel of ones: their convolution sums up to 27 of 27 voxels."""


@dataclass(frozen=True, slots=True)
class Device:
    """A device, as one process uses it."""

    name: str
    """As the setting names it: cpu, cuda:0, or the UUID of a GPU or of a slice of one (MIG). Results carry it."""
    threads: int | None = None
    """Threads of a process that shares the processor with others; None for all cores."""

    @property
    def is_cpu(self) -> bool:
        """Whether it is the processor."""
        return self.name == "cpu"

    @property
    def torch_name(self) -> str:
        """Its name in a process with its `environment`: CUDA shows a device that is named by its UUID as the only one."""
        return "cuda:0" if self.name.startswith(("MIG-", "GPU-")) else self.name

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables of its process, to be set before torch is imported."""
        chosen = {} if self.torch_name == self.name else {"CUDA_VISIBLE_DEVICES": self.name}
        # OpenVINO takes as many threads as torch, and torch as many as OpenMP.
        return chosen if self.threads is None else chosen | {"OMP_NUM_THREADS": str(self.threads)}


CPU: Final = Device("cpu")


def devices_of(setting: str) -> tuple[Device, ...]:
    """Return the devices of CALIBRANT_DEVICE, one for each process that is to compute.

    Processes on the processor share its cores; OMP_NUM_THREADS, if it is set, is the number of threads of each instead.

    Args:
        setting: devices separated by commas, e.g. cuda:0,cuda:1; n processes on one of them are written cpu*n; auto is every
            CUDA device of this machine, or cpu if there is none.

    Raises:
        SettingsError: it does not read like that.
    """
    names = (
        _every_device() if setting.strip() == AUTO else [name for entry in setting.split(",") for name in _names(entry)]
    )
    on_cpu = names.count(CPU.name)
    if on_cpu < 2 or "OMP_NUM_THREADS" in os.environ:  # noqa: PLR2004 - one process has nobody to share with
        return tuple(Device(name) for name in names)
    share = max(len(os.sched_getaffinity(0)) // on_cpu, 1)
    return tuple(replace(CPU, threads=share) if name == CPU.name else Device(name) for name in names)


def first_device(setting: str) -> Device:
    """Return the first of the devices of CALIBRANT_DEVICE, for a command that computes in one process, with all cores.

    Raises:
        SettingsError: as `devices_of`.
    """
    return replace(devices_of(setting)[0], threads=None)


def _names(entry: str) -> list[str]:
    match = _ENTRY.fullmatch(entry.strip())
    if match is None:
        msg = (
            "CALIBRANT_DEVICE, or --device, does not name devices. Expected cpu, cuda:0, several with commas between them, cpu*2 for two "
            "processes, the UUID of a GPU or MIG slice, or auto. See docs/settings.md."
        )
        raise SettingsError(msg)
    name, times = match.groups()
    return ["cuda:0" if name == "cuda" else name] * int(times or 1)


def _every_device() -> list[str]:
    """Return the names of all CUDA devices, of the slices where a GPU is cut (MIG); asked of a process that holds torch."""
    if "CUDA_VISIBLE_DEVICES" not in os.environ and (slices := _slices()):
        return slices
    try:
        listed = subprocess.run(  # noqa: S603 - our own interpreter
            [sys.executable, "-c", _LIST], capture_output=True, text=True, check=True, timeout=LIST_DEADLINE_S
        )
        count = int(listed.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        count = 0
    return [f"cuda:{number}" for number in range(count)] or [CPU.name]


def _slices() -> list[str]:
    """Return the UUIDs of MIG slices; torch itself sees one slice at most."""
    try:
        listed = subprocess.run(
            ["nvidia-smi", "-L"],  # noqa: S607 - the driver's own, wherever it is
            capture_output=True,
            text=True,
            check=True,
            timeout=LIST_DEADLINE_S,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return _MIG.findall(listed.stdout)


def claim(device: Device) -> "torch.device":
    """Return the torch device, after a first computation on it in this process came out right.

    Raises:
        DeviceUnavailable: it is missing, or computes wrongly or not at all.
    """
    os.environ.update(device.environment)
    import torch

    from service.engines.machine import prepare

    try:
        place = torch.device(device.torch_name)
        prepare(place)
        image, kernel = (torch.ones((1, 1, n, n, n), device=place) for n in _ONES)
        total = float(torch.nn.functional.conv3d(image, kernel).sum())
        if place.type == "cuda":
            torch.cuda.set_device(place)  # for calls that name no device
    except (
        RuntimeError,
        AssertionError,
    ) as error:  # torch's errors for a device that it was not built for, or is missing
        raise DeviceUnavailable(_why_not(device, error)) from error
    if total != _expected_total():
        msg = f"{device.name} computes wrongly: a convolution of ones summed up to {total}, not {_expected_total()}. Do not use it."
        raise DeviceUnavailable(msg)
    return place


def describe(place: "torch.device") -> str:
    """Return what a device is that this process has claimed: name, compute capability, memory and versions of a GPU."""
    import torch

    if place.type != "cuda":
        return f"{len(os.sched_getaffinity(0))} cores, {torch.get_num_threads()} threads"
    free, total = (size / (1 << 30) for size in torch.cuda.mem_get_info(place))
    major, minor = torch.cuda.get_device_capability(place)
    driver = _DRIVER.search(DRIVER_FILE.read_text()) if DRIVER_FILE.is_file() else None
    return (
        f"{torch.cuda.get_device_name(place)}, compute capability {major}.{minor}, {free:.1f} of {total:.1f} GiB free, "
        f"driver {driver[1] if driver else 'unknown'}, CUDA {torch.version.cuda}"
    )


def _expected_total() -> int:
    image, kernel = _ONES
    return (image - kernel + 1) ** 3 * kernel**3


def _why_not(device: Device, error: Exception) -> str:
    import torch

    remedy = "Choose cpu, or a device that calibrant doctor shows (CALIBRANT_DEVICE, or --device)."
    if not torch.backends.cuda.is_built():
        return f"{device.name} cannot be used: torch {torch.__version__} is built without CUDA. {remedy}"
    if (count := torch.cuda.device_count()) == 0:
        return f"{device.name} cannot be used: torch {torch.__version__} finds no CUDA device. {remedy}"
    if device.name.startswith("cuda:") and int(device.name.removeprefix("cuda:")) >= count:
        return f"{device.name} cannot be used: this machine has {count} CUDA devices, counted from cuda:0. {remedy}"
    return f"{device.name} cannot be used: the first computation on it failed ({type(error).__name__}). {remedy}"
