"""What further processes on a device bring: one reads, prepares or writes a case while another computes."""

import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch

from gpu_day.report import Finding, Report
from service.bundle.description import BundleDescription
from service.executors.pool import ExecutorPool
from service.schemas import Output
from service.settings import Settings

PROCESSES = (1, 2, 3)
OUTPUTS: tuple[Output, ...] = ("mask", "confidence", "summary")
WARM_UP = 3
"""Cases of each process before the clock starts."""

START_S = 120.0
"""Seconds after which a process that does not compute is an error."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A case: its name in the table, the bundle, the scan, and the folder with the bundle's measurements."""

    name: str
    bundle: BundleDescription
    scan: Path
    state: Path


def bench_overlap(report: Report, subject: Subject, device: torch.device, *, cases: int, rounds: int) -> None:
    """Add a row for each number of processes: cases a second through the service's executors, taken in turn."""
    rates: dict[int, list[float]] = {number: [] for number in PROCESSES}
    with ExitStack() as stack:
        pools = {number: stack.enter_context(_started(f"{device}*{number}", subject)) for number in PROCESSES}
        for number, pool in pools.items():
            _await(pool)
            _cases_per_second(pool, subject, WARM_UP * number)
        for _, (number, pool) in product(range(rounds), pools.items()):
            rates[number].append(_cases_per_second(pool, subject, cases))
    for number, found in rates.items():
        ratio = statistics.median(one / other for one, other in zip(found, rates[PROCESSES[0]], strict=True))
        text = f"{statistics.median(found):.2f} cases/s ({min(found):.2f} to {max(found):.2f}), {ratio:.2f} of one"
        report.row(f"{subject.name}, processes: {number}", lambda text=text: Finding(text))  # type: ignore[misc]


@contextmanager
def _started(devices: str, subject: Subject) -> Iterator[ExecutorPool]:
    """Start executors, and end them afterwards; while they have no case, they only hold memory."""
    pool = ExecutorPool.of(Settings(device=devices, state_dir=subject.state), subject.bundle)
    pool.start()
    try:
        yield pool
    finally:
        pool.stop()


def _await(pool: ExecutorPool) -> None:
    """Wait until all executors compute."""
    deadline = time.monotonic() + START_S
    while pool.working < pool.size:
        if time.monotonic() > deadline:
            raise TimeoutError(pool.why_not or f"{pool.working} of {pool.size} processes compute")
        time.sleep(0.05)


def _cases_per_second(pool: ExecutorPool, subject: Subject, cases: int) -> float:
    """Run a case some times, with one more at hand than there are processes."""

    def run(_: int) -> None:
        with tempfile.TemporaryDirectory() as out, pool.lend() as executor:
            executor.run(subject.scan, subject.bundle, Path(out), lambda _stage, _done: None, outputs=OUTPUTS)

    with ThreadPoolExecutor(pool.size + 1) as clients:
        started = time.perf_counter()
        list(clients.map(run, range(cases)))
        return cases / (time.perf_counter() - started)
