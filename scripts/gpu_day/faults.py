"""Faults of the device during a case in the service's executor, and the case after it."""

import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch

from gpu_day.phantoms import Shipped, shipped
from gpu_day.plants import PLANT
from gpu_day.report import Finding, Report
from service.engines.devices import Device
from service.errors import CalibrantError, InferenceCrashed, InferenceDeadline, InferenceOutOfMemory
from service.executors.embedded import EmbeddedExecutor
from service.result.files import MASK
from service.schemas import CaseResult
from service.schemas import Report as Progress

ATTEMPTS = 3
DEADLINE_S = 120.0


class Cases:
    """Runs the same case again and again in an executor, each in a folder of its own."""

    def __init__(self, executor: EmbeddedExecutor, subject: Shipped) -> None:
        """Keep the executor and the case."""
        self._executor = executor
        self._subject = subject
        self.folder = Path(tempfile.mkdtemp(dir=subject.state))

    def run(self, progress: Progress = lambda _stage, _done: None) -> tuple[CaseResult, np.ndarray]:
        """Compute the case once and return its result and its mask."""
        import nibabel as nib

        with tempfile.TemporaryDirectory(dir=self.folder) as out:
            result = self._executor.run(self._subject.scan, self._subject.description, Path(out), progress)
            mask = np.asarray(nib.load(Path(out) / MASK).dataobj)  # type: ignore[attr-defined]  # nibabel's types lack it
            return result, mask


def strike_faults(report: Report, device: torch.device) -> None:
    """Add a row for each fault: what the case said, and whether the next one was good."""
    with ExitStack() as stack:
        subject = stack.enter_context(shipped(device))
        plant = subject.state / "plant"
        os.environ[PLANT] = str(plant)
        executor = EmbeddedExecutor(
            device=Device(str(device)), deadline_s=DEADLINE_S, state=subject.state, warm=subject.description
        )
        stack.callback(executor.stop)
        executor.start()
        cases = Cases(executor, subject)
        expected: list[np.ndarray] = []

        def first() -> Finding:
            started = time.monotonic()
            result, mask = cases.run()
            expected.append(mask)
            text = f"{np.count_nonzero(mask)} voxels by {result.engine}-{result.precision} on {result.device}, placement {result.placement}"
            return Finding(f"{text}, {time.monotonic() - started:.1f} s with the start", passed=bool(mask.any()))

        how = "" if device.type == "cuda" else " (injected)"
        report.row("a case in the executor", first)
        report.row(
            f"illegal access{how}", lambda: _after(cases, expected[0], lambda: plant.write_text("illegal access"))
        )
        report.row(
            f"out of memory once{how}", lambda: _after(cases, expected[0], lambda: plant.write_text("out of memory"))
        )
        report.row("kill -9 during a case", lambda: _after(cases, expected[0], lambda: None, _kill_when_inferring))
        del os.environ[PLANT]


def _after(
    cases: Cases, expected: np.ndarray, plant: Callable[[], object], progress: Callable[[], Progress] | None = None
) -> Finding:
    """Strike, then run the case until it succeeds; a fault may cost it one attempt, and the mask is as before."""
    plant()
    said = []
    for attempt in range(ATTEMPTS):
        try:
            result, mask = cases.run(progress()) if progress and not attempt else cases.run()
        except (InferenceCrashed, InferenceDeadline, InferenceOutOfMemory) as error:
            said.append(error.code)
        except CalibrantError as error:
            return Finding(f"the case ended with {error.code}: {error.detail}", passed=False)
        else:
            same = np.array_equal(mask, expected)
            said.append(f"good on {result.placement}, the mask {'equal' if same else 'DIFFERENT'}")
            return Finding(", then ".join(said), passed=same)
    return Finding(", then ".join(said), passed=False)


def _kill_when_inferring() -> Progress:
    killed: list[int] = []

    def progress(stage: str, _: float) -> None:
        if stage == "infer" and not killed:
            killed.extend(child.pid or 0 for child in multiprocessing.active_children() if "inference" in child.name)
            for process in killed:
                os.kill(process, signal.SIGKILL)

    return progress
