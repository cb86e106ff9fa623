"""Faults planted in the service's inference process: a real one on a GPU, an injected one on a CPU.

Each child that `multiprocessing` spawns imports the program's main module anew; the kit's then installs a hook in the
inference process, which watches for a file that names the fault.
"""

import multiprocessing
import os
from pathlib import Path
from typing import Any, Final

PLANT: Final = "CALIBRANT_GPU_DAY_PLANT"
"""Environment variable that names the file; a fault strikes once and removes it."""

KERNEL: Final = 'extern "C" __global__ void stray(float* x) { x[1ull << 40] = 1.0f; }'


def install() -> None:
    """Watch every call of a network in this process, if it is an inference process of a run that plants faults."""
    if PLANT not in os.environ or "inference" not in multiprocessing.current_process().name:
        return
    from torch.nn.modules.module import register_module_forward_pre_hook

    register_module_forward_pre_hook(_strike)


def _strike(_: object, inputs: tuple[Any, ...]) -> None:
    file = Path(os.environ[PLANT])
    if file.is_file():
        fault = file.read_text()
        file.unlink()
        {"illegal access": _illegal_access, "out of memory": _out_of_memory}[fault](inputs[0])


def _illegal_access(tensor: Any) -> None:  # noqa: ANN401 - torch must not be imported by every process
    import torch

    if tensor.device.type != "cuda":
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")  # noqa: EM101, TRY003 - as CUDA says it
    try:
        stray = torch.cuda._compile_kernel(KERNEL, "stray")  # noqa: SLF001 - no public function compiles a kernel
    except Exception:  # noqa: BLE001 - without the compiler a failed assertion in a kernel does as well
        tensor.flatten()[torch.tensor([1 << 40], device=tensor.device)].sum()
        return
    stray((1, 1, 1), (1, 1, 1), (tensor,))


def _out_of_memory(tensor: Any) -> None:  # noqa: ANN401 - as above
    import torch

    if tensor.device.type != "cuda":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")  # noqa: EM101, TRY003 - as CUDA says it
    torch.empty(1 << 45, dtype=torch.uint8, device=tensor.device)
