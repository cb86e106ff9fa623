"""Which engines a machine has."""

from importlib.util import find_spec

import torch

from service.bundle.kind import KINDS, Kind


def available(device: torch.device) -> list[Kind]:
    """Return the kinds that a device can run, the fastest first."""
    return [kind for kind in KINDS.values() if _has_engine(kind, device) and _has_precision(kind, device)]


def _has_engine(kind: Kind, device: torch.device) -> bool:
    return kind.engine == "torch" or (device.type == "cpu" and find_spec("openvino") is not None)


def _has_precision(kind: Kind, device: torch.device) -> bool:
    if kind.precision == "fp32":
        return True
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    # Elsewhere bfloat16 is emulated, and slower than float32. torch has no public name for these questions.
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())  # noqa: SLF001
