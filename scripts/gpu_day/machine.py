"""What the device is, and how fast it moves and multiplies: the ceilings of everything that runs on it."""

import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from gpu_day.report import Finding

WARM_UPS, ROUNDS = 2, 7


def wait(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], object], device: torch.device, rounds: int = ROUNDS) -> float:
    """Return the median time of some work, after a warm-up, each with its own synchronisation."""
    times = []
    for number in range(WARM_UPS + rounds):
        wait(device)
        started = time.perf_counter()
        work()
        wait(device)
        if number >= WARM_UPS:
            times.append(time.perf_counter() - started)
    return sorted(times)[len(times) // 2]


def peak_mib(device: torch.device) -> float:
    """Return the most memory of the device that torch has allocated since `start_peak`; NaN on a CPU."""
    return torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else float("nan")


def start_peak(device: torch.device) -> None:
    """Count the device's memory from here."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


@contextmanager
def tensor_float_32(*, on: bool) -> Iterator[None]:
    """Let float32 products and convolutions on CUDA use TF32, or forbid it."""
    modules = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)  # type: ignore[attr-defined]  # torch's types lack it
    before = [module.fp32_precision for module in modules]
    for module in modules:
        module.fp32_precision = "tf32" if on else "ieee"
    try:
        yield
    finally:
        for module, precision in zip(modules, before, strict=True):
            module.fp32_precision = precision


def used_mib() -> float:
    """Return the memory in use on the first GPU by all processes; NaN without `nvidia-smi`."""
    answer = _nvidia_smi("memory.used")
    return float(answer) if answer else float("nan")


def described(device: torch.device) -> Finding:
    """Say what the device is."""
    software = f"Python {platform.python_version()}, torch {torch.__version__}, {os.cpu_count()} cores"
    if device.type != "cuda":
        return Finding(f"{platform.machine()}; {software}")
    facts = torch.cuda.get_device_properties(device)
    driver = _nvidia_smi("driver_version") or "unknown"
    return Finding(
        f"{facts.name}, compute capability {facts.major}.{facts.minor}, {facts.total_memory / 2**30:.1f} GiB, driver {driver}; "
        f"{software}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    )


def bandwidth(device: torch.device) -> Finding:
    """Measure a copy within the device's memory, counting bytes read and written, and to and from the host's."""
    size = 2**30 if device.type == "cuda" else 2**26
    source = torch.randint(255, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    within = 2 * size / seconds(lambda: target.copy_(source), device) / 1e9
    if device.type != "cuda":
        return Finding(f"{within:.0f} GB/s within the memory")
    texts = [f"{within:.0f} GB/s within the device"]
    for name, pinned in (("pageable", False), ("pinned", True)):
        host = torch.empty(2**28, dtype=torch.uint8, pin_memory=pinned)
        up = len(host) / seconds(lambda host=host: target[: len(host)].copy_(host), device) / 1e9  # type: ignore[misc]
        down = len(host) / seconds(lambda host=host: host.copy_(source[: len(host)]), device) / 1e9  # type: ignore[misc]
        texts.append(f"{name} {up:.1f} up, {down:.1f} down")
    return Finding("; ".join(texts))


def products(device: torch.device) -> Finding:
    """Measure a large matrix product in each arithmetic."""
    n = 8192 if device.type == "cuda" else 1024
    kinds = [("fp32", torch.float32, False), ("bf16", torch.bfloat16, False)]
    if device.type == "cuda":
        kinds += [("tf32", torch.float32, True), ("fp16", torch.float16, False)]
    texts = []
    for name, dtype, tf32 in kinds:
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        with tensor_float_32(on=tf32):
            texts.append(f"{name} {2 * n**3 / seconds(lambda a=a, b=b: a @ b, device, 5) / 1e12:.3g}")  # type: ignore[misc]
    return Finding(f"{n} x {n}, TFLOP/s: {', '.join(texts)}")


def _nvidia_smi(field: str) -> str:
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    command = [program, f"--query-gpu={field}", "--format=csv,noheader,nounits"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.split("\n")[0].strip()
