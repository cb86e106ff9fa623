"""Find the engines that a device has, and prepare its process for computing."""

from importlib.util import find_spec
from typing import Final

import torch

from service.bundle.engine_kind import ENGINE_KINDS, EngineKind

_BF16_FROM: Final = (8, 0)
"""Compute capability of the first GPUs with bfloat16 arithmetic (Ampere); earlier ones emulate it, slowly."""

_FP16_FROM: Final = (7, 0)
"""Compute capability of the first GPUs whose tensor cores take float16 (Volta)."""


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
