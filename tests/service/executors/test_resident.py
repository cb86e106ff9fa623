"""Cases on devices that fail: real child processes with planted errors, so that none of it needs a GPU."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from service.bundle.description import BundleDescription, describe_bundle
from service.engines.devices import Device
from service.errors import (
    CalibrantError,
    DeviceUnavailable,
    InferenceCrashed,
    InferenceDeadline,
    InferenceOutOfMemory,
)
from service.executors import embedded
from service.executors.embedded import EmbeddedExecutor
from service.schemas import CaseResult
from tests.service.executors import planted

Case = Callable[..., CaseResult]


@pytest.fixture
def description(tiny_bundle: Path) -> BundleDescription:
    """Return the tiny bundle."""
    return describe_bundle(tiny_bundle)


@pytest.fixture
def executor(monkeypatch: pytest.MonkeyPatch, description: BundleDescription) -> Iterator[EmbeddedExecutor]:
    """Yield an executor whose child raises the error that a scan's name asks for; nothing keeps it alive but its cases."""
    monkeypatch.setattr(embedded, "serve", planted.serve_faulty)
    monkeypatch.setattr(embedded, "REST_S", (0.5, 1.0))
    executor = EmbeddedExecutor(deadline_s=100.0, warm=description)
    yield executor
    executor.stop()


@pytest.fixture
def case(
    executor: EmbeddedExecutor, description: BundleDescription, tmp_path: Path, write_nifti: Callable[..., None]
) -> Case:
    """Return the function that runs a case of a scan with a name."""

    def run(name: str, hook: Callable[[], None] = lambda: None) -> CaseResult:
        scan, out = tmp_path / f"{name}.nii", tmp_path / f"out-{time.monotonic_ns()}"
        write_nifti(scan, np.random.default_rng(0).normal(size=(12, 10, 9)).astype(np.float32))
        out.mkdir()
        return executor.run(scan, description, out, lambda _stage, _done: hook())

    return run


def _pid(executor: EmbeddedExecutor) -> int:
    assert executor._child is not None
    assert executor._child.process.pid is not None
    return executor._child.process.pid


def _why_not(executor: EmbeddedExecutor) -> str:
    return executor.why_not or ""


def _eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("error", ["illegal", "cublas"])
def test_an_error_of_the_device_ends_its_child(case: Case, executor: EmbeddedExecutor, error: str) -> None:
    """The case may be tried again, and the next one runs on a fresh child, with the result of an undisturbed one."""
    before, pid = case("good"), _pid(executor)

    with pytest.raises(InferenceCrashed, match=r"^cpu failed during the case \(\w+Error\)\.$"):
        case(error)

    assert not Path(f"/proc/{pid}").exists()
    assert not executor.ready
    assert case("good").files == before.files
    assert _pid(executor) != pid
    assert executor.ready


def test_a_device_that_fails_again_and_again_rests_and_comes_back(case: Case, executor: EmbeddedExecutor) -> None:
    """After three failures in a row it is not ready and says why; after a pause it is tried again, and serves."""
    executor.start()
    for _ in range(embedded.MAX_FAULTS):
        assert _why_not(executor) == ""
        with pytest.raises(InferenceCrashed):
            case("illegal")

    assert not executor.ready
    assert _why_not(executor) == ("cpu failed during the case (AcceleratorError). That happened 3 times in a row.")
    _eventually(lambda: executor.ready)
    assert _why_not(executor) == ""
    assert case("good").device == "cpu"
    with pytest.raises(InferenceCrashed):
        case("illegal")
    assert _why_not(executor) == ""  # the good case was in between


def test_a_full_device_fails_the_case_alone(case: Case, executor: EmbeddedExecutor) -> None:
    """The sentence speaks of the device's memory; the child lives on."""
    case("good")
    pid = _pid(executor)

    with pytest.raises(InferenceOutOfMemory, match=r"^The case needs more memory than cpu has\."):
        case("full")

    assert case("good").device == "cpu"
    assert _pid(executor) == pid


def test_an_error_that_nobody_foresaw_ends_neither_child_nor_device(case: Case, executor: EmbeddedExecutor) -> None:
    """Only its type is shown."""
    case("good")
    pid = _pid(executor)

    with pytest.raises(CalibrantError, match=r"^The computation failed \(ValueError\)\.$"):
        case("other")

    assert executor.ready
    assert _pid(executor) == pid


@pytest.mark.parametrize(
    ("child", "why"),
    [
        (planted.serve_not_finite, "cpu computes wrongly: a window of the first model has values that are not finite"),
        (planted.serve_faulty_first_window, r"cpu cannot be used: a window of the first model failed on it \(Accel"),
    ],
)
def test_a_device_is_ready_only_when_it_has_computed(
    executor: EmbeddedExecutor, case: Case, monkeypatch: pytest.MonkeyPatch, child: Callable[..., None], why: str
) -> None:
    """A window of the first model is computed before anything else; if it fails, no case begins."""
    monkeypatch.setattr(embedded, "serve", child)

    with pytest.raises(DeviceUnavailable, match=why):
        case("good")

    assert not executor.ready
    assert executor.judged.is_set()


def test_a_broken_model_is_no_fault_of_the_device(
    executor: EmbeddedExecutor, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other models can be served."""
    monkeypatch.setattr(embedded, "serve", planted.serve_broken_bundle)

    assert case("good").device == "cpu"
    assert executor.ready


def test_a_child_that_cannot_be_ended_is_given_up(
    executor: EmbeddedExecutor, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process stuck in a driver dies of no signal: its device is not ready, says why, and is used again once it is gone."""
    case("good")
    pid = _pid(executor)
    assert executor._child is not None
    monkeypatch.setattr(embedded, "KILL_S", 0.2)
    monkeypatch.setattr(executor._child.process, "kill", lambda: None)
    monkeypatch.setattr(executor, "_deadline_s", 0.2)
    os.kill(pid, signal.SIGSTOP)

    with pytest.raises(InferenceDeadline):
        case("good")

    assert not executor.ready
    assert "stuck in the driver" in _why_not(executor)
    with pytest.raises(DeviceUnavailable, match="stuck in the driver"):
        case("good")

    monkeypatch.setattr(executor, "_deadline_s", 100.0)
    os.kill(pid, signal.SIGKILL)
    _eventually(lambda: not executor._child or not executor._child.process.is_alive())
    assert case("good").device == "cpu"
    assert _pid(executor) != pid


@pytest.mark.gpu
@pytest.mark.timeout(300)
def test_a_device_serves_on_after_a_kill_and_after_a_fault(
    executor: EmbeddedExecutor, case: Case, gpu_device: torch.device
) -> None:
    """A case on the device; kill -9 during one; a kernel that fails. Each time the next case has the result of the first."""
    executor.device = Device(str(gpu_device))
    executor._terms = dataclasses.replace(executor._terms, device=executor.device)
    executor.start()
    first = case("good")
    assert first.device == str(gpu_device)
    assert executor.description

    pid = _pid(executor)
    with pytest.raises(InferenceCrashed, match="died"):
        case("good", lambda: os.kill(pid, signal.SIGKILL))
    assert case("good").files["mask.nii.gz"] == first.files["mask.nii.gz"]

    pid = _pid(executor)
    with pytest.raises(InferenceCrashed, match=f"{gpu_device} failed during the case"):
        case("poison")
    assert not Path(f"/proc/{pid}").exists()
    assert case("good").files["mask.nii.gz"] == first.files["mask.nii.gz"]


def test_a_child_imports_nothing_that_no_case_needs() -> None:
    """MONAI's networks load without the libraries for pictures, tables and statistics."""
    code = (
        "import sys; from service.executors.resident import LEFT_OUT, leave_out\n"
        "leave_out(); import service.pipeline.run, monai.networks.nets\n"
        "print(sum(found is not None and name.startswith(LEFT_OUT) for name, found in sys.modules.items()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "0\n"
