"""Find the engines that a machine has."""

from importlib.util import find_spec

import torch

from service.bundle.engine_kind import ENGINE_KINDS, EngineKind


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
        return torch.cuda.is_bf16_supported()
    # Other CPUs emulate bfloat16, slower than float32. torch has no public function for this query.
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())  # noqa: SLF001
