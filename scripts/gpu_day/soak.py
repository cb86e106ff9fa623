"""The mode `soak`: many cases through the service's executor, with the memory watched."""

import multiprocessing
import statistics
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch

from gpu_day.faults import DEADLINE_S, Cases
from gpu_day.machine import described, used_mib
from gpu_day.phantoms import shipped
from gpu_day.report import Finding, Report
from service.engines.devices import Device
from service.executors.embedded import EmbeddedExecutor

CASES, SHORT_CASES = 500, 6
WARM_UP = 0.2
"""Share of the cases after which memory must no longer grow."""

GROWTH_MIB = 32
TIME_S = 480.0


def soak(report: Report, device: torch.device, *, short: bool) -> None:
    """Compute the same case again and again; masks stay equal, and the memory of the process and the GPU stays flat."""
    report.row("device", lambda: described(device))
    number = SHORT_CASES if short else CASES
    with ExitStack() as stack:
        subject = stack.enter_context(shipped(device))
        executor = EmbeddedExecutor(
            device=Device(str(device)), deadline_s=DEADLINE_S, state=subject.state, warm=subject.description
        )
        stack.callback(executor.stop)
        executor.start()
        cases = Cases(executor, subject)
        memory: list[tuple[float, float]] = []

        def run() -> Finding:
            started, times = time.monotonic(), []
            _, expected = cases.run()
            for n in range(1, number):
                before = time.monotonic()
                _, mask = cases.run()
                times.append(time.monotonic() - before)
                if not np.array_equal(mask, expected):
                    return Finding(f"the mask of case {n + 1} differs from the first", passed=False)
                memory.append((_resident_mib(), used_mib() if n % 10 == 0 or n == number - 1 else float("nan")))
                if time.monotonic() - started > TIME_S:
                    return Finding(f"{n + 1} of {number} cases in {TIME_S:.0f} s", passed=False)
            return Finding(f"{number} cases, median {statistics.median(times):.3f} s, all masks equal", passed=True)

        report.row("cases", run)
        report.row("memory of the process", lambda: _flat([each for each, _ in memory]))
        if device.type == "cuda":
            report.row("memory of the GPU", lambda: _flat([each for _, each in memory if each == each]))  # noqa: PLR0124 - not NaN


def _flat(values: list[float]) -> Finding:
    first, last = values[int(WARM_UP * len(values))], statistics.median(values[-5:])
    text = f"{first:.0f} MiB after {100 * WARM_UP:.0f} % of the cases, {last:.0f} MiB at the end, at most {max(values):.0f}"
    return Finding(text, passed=last - first <= GROWTH_MIB)


def _resident_mib() -> float:
    """Return the resident memory of the inference process."""
    (process,) = [child for child in multiprocessing.active_children() if "inference" in child.name]
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))
