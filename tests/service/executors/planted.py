"""Child processes with a planted fault, to be started instead of `service.executors.resident.serve`."""

from pathlib import Path
from typing import Any

import torch

from service.errors import CalibrantError
from service.executors import resident
from service.pipeline import run
from service.schemas import CaseResult

ERRORS: dict[str, Exception] = {
    "illegal": torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
    "cublas": RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`"),
    "full": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
    "other": ValueError("Doe^Jane"),
}
"""What a case of a scan with this name raises once it has begun."""


def serve_faulty(pipe: Any, terms: resident.Terms) -> None:  # noqa: ANN401 - as in `serve`
    """Serve, but raise the error that a scan's name asks for."""
    compute = run.run_case

    def run_case(scan: Path, bundle: Any, out: Path, report: Any, *rest: Any, **named: Any) -> CaseResult:  # noqa: ANN401 - as there
        if scan.stem in ERRORS:
            report("infer", 0.0)
            raise ERRORS[scan.stem]
        if scan.stem == "poison":
            report("infer", 0.0)
            _poison(bundle.device)
        return compute(scan, bundle, out, report, *rest, **named)

    run.run_case = run_case
    resident.serve(pipe, terms)


def serve_not_finite(pipe: Any, terms: resident.Terms) -> None:  # noqa: ANN401 - as in `serve`
    """Serve on a device whose networks compute NaN."""
    resident._computes_a_window = lambda _: False  # type: ignore[assignment]
    resident.serve(pipe, terms)


def serve_faulty_first_window(pipe: Any, terms: resident.Terms) -> None:  # noqa: ANN401 - as in `serve`
    """Serve on a device that fails as soon as a network runs on it."""
    resident._computes_a_window = _raise_illegal  # type: ignore[assignment]
    resident.serve(pipe, terms)


def serve_broken_bundle(pipe: Any, terms: resident.Terms) -> None:  # noqa: ANN401 - as in `serve`
    """Serve with a first model that cannot be loaded; the device is sound."""
    resident._computes_a_window = _raise_ours  # type: ignore[assignment]
    resident.serve(pipe, terms)


def _poison(device: torch.device) -> None:
    """Let a kernel fail, as a faulty one does: CUDA then refuses everything else in this process. Other devices pretend."""
    if device.type != "cuda":
        raise ERRORS["illegal"]
    far = torch.tensor([1 << 40], device=device)
    torch.ones(1, device=device)[far].cpu()


def _raise_illegal(_: object) -> bool:
    raise ERRORS["illegal"]


def _raise_ours(_: object) -> bool:
    msg = "The bundle is broken."
    raise CalibrantError(msg)
