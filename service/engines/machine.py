"""What a device has and how it is asked: engines, kind, preparation of its process, waiting, copies."""

import math
from importlib.util import find_spec
from typing import Final

import torch
from torch import nn

from service.bundle.engine_kind import ENGINE_KINDS, EngineKind

_BF16_FROM: Final = (8, 0)
"""Compute capability of the first GPUs with bfloat16 arithmetic (Ampere); earlier ones emulate it, slowly."""

_FP16_FROM: Final = (7, 0)
"""Compute capability of the first GPUs whose tensor cores take float16 (Volta)."""

_MOST_WINDOWS: Final = 8
_VOXELS_AT_A_TIME: Final = 4 * 96**3
"""Voxels of the windows that a GPU computes at a time: fewer leave it idle, more need memory without gain."""


def device_kind(device: torch.device) -> str:
    """Return the kind of device that a measurement is valid for: ``cpu``, or ``cuda-9.0`` with the compute capability.

    GPUs of one compute capability run the same instructions; between two of them rounding may differ.
    """
    if device.type != "cuda":
        return device.type
    major, minor = torch.cuda.get_device_capability(device)
    return f"cuda-{major}.{minor}"


def prepare(device: torch.device) -> None:
    """Set how this process computes on a device. Call it once, before anything is computed.

    On a GPU float32 is float32: torch's default lets cuDNN round its inputs to 10 bits (TF32). cuDNN must choose a
    convolution's algorithm by its shape, not by timing: timings, and with them the last bits of a result, change
    between two starts of the service. On a CPU nothing is set.
    """
    if device.type != "cuda":
        return
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]  # torch's types lack it
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def device_of(network: nn.Module) -> torch.device:
    """Return the device of a network; one without torch tensors computes on the CPU."""
    return next((parameter.device for parameter in network.parameters()), torch.device("cpu"))


def windows_at_a_time(device: torch.device, patch_size: tuple[int, ...]) -> int:
    """Return how many windows of (D, H, W) voxels a device computes at a time.

    It follows from device type and window size alone: with the free memory of the moment it would change the last bits
    of results. OpenVINO's networks are compiled for one window.
    """
    if device.type == "cpu":
        return 1
    return max(1, min(_MOST_WINDOWS, _VOXELS_AT_A_TIME // math.prod(patch_size)))


def synchronise(device: torch.device) -> None:
    """Wait until a device has done all that it was sent; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def to_host(array: torch.Tensor) -> torch.Tensor:
    """Return an array in the CPU's memory, with the same strides: the array itself if it is there.

    From a GPU it is copied to page-locked memory, at several times the speed.
    """
    if array.device.type != "cuda":
        return array.cpu()
    return torch.empty_like(array, device="cpu", pin_memory=True).copy_(array)


def available(device: torch.device) -> list[EngineKind]:
    """Return the engine kinds that a device can run, fastest first."""
    return [
        engine_kind
        for engine_kind in ENGINE_KINDS.values()
        if _has_engine(engine_kind, device) and _has_precision(engine_kind, device)
    ]


def _has_engine(engine_kind: EngineKind, device: torch.device) -> bool:
    return engine_kind.engine == "torch" or (device.type == "cpu" and find_spec("openvino") is not None)


def _has_precision(engine_kind: EngineKind, device: torch.device) -> bool:
    if engine_kind.precision == "fp32":
        return True
    if device.type == "cuda":
        # Not torch.cuda.is_bf16_supported(): it counts emulation, and asks the current device.
        first = _BF16_FROM if engine_kind.precision == "bf16" else _FP16_FROM
        return torch.cuda.get_device_capability(device) >= first
    if engine_kind.precision == "fp16":
        return False
    # Other CPUs emulate bfloat16, slower than float32. torch has no public function for this query.
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())  # noqa: SLF001
