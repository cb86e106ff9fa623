import contextlib
import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.bundle.description import BundleDescription, describe_bundle
from service.errors import (
    BundleIntegrity,
    CalibrantError,
    DeviceUnavailable,
    InferenceCrashed,
    InferenceDeadline,
    InferenceOutOfMemory,
    JobCancelled,
    NonFiniteVoxels,
    StorageFault,
)
from service.executors.embedded import EmbeddedExecutor, ExecutorStopped
from service.result.files import RESULT
from service.schemas import CaseResult

STAGES = ["decode", "preprocess", "infer", "calibrate", "encode", "store"]

Case = Callable[..., CaseResult]
Seen = list[tuple[str, float]]


@pytest.fixture(scope="module")
def executors() -> Iterator[list[EmbeddedExecutor]]:
    """Yield the executors of this file; as few as possible, because a child needs seconds to import torch."""
    used: list[EmbeddedExecutor] = []
    yield used
    for executor in used:
        executor.stop()


@pytest.fixture
def executor(executors: list[EmbeddedExecutor]) -> EmbeddedExecutor:
    """Return an executor that was not stopped."""
    if not executors or executors[-1]._stopped.is_set():
        executors.append(EmbeddedExecutor(deadline_s=100.0))
        executors[-1].start()
    return executors[-1]


@pytest.fixture
def scan(tmp_path: Path, write_nifti: Callable[..., None]) -> Path:
    """Return a small harmless scan."""
    path = tmp_path / "scan.nii.gz"
    write_nifti(path, np.random.default_rng(0).normal(size=(12, 10, 9)).astype(np.float32))
    return path


@pytest.fixture
def description(tiny_bundle: Path) -> BundleDescription:
    """Return the unchanged tiny bundle."""
    return describe_bundle(tiny_bundle)


@pytest.fixture
def case(executor: EmbeddedExecutor, description: BundleDescription, scan: Path, tmp_path: Path) -> Case:
    """Return the function that runs one case in a fresh folder; `seen` collects its reports."""
    number = itertools.count()

    def run(
        seen: Seen | None = None,
        scan: Path = scan,
        hook: Callable[[], None] = lambda: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> CaseResult:
        out = tmp_path / f"out{next(number)}"
        out.mkdir()

        def report(stage: str, done: float) -> None:
            hook()
            if seen is not None:
                seen.append((stage, done))

        result = executor.run(scan, description, out, report, cancelled=cancelled)
        assert (out / RESULT).is_file()
        return result

    return run


def _pid(executor: EmbeddedExecutor) -> int:
    assert executor._child is not None
    pid = executor._child.process.pid
    assert pid is not None
    return pid


def _gone(pid: int) -> bool:
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    return not Path(f"/proc/{pid}").exists()


def test_a_case_succeeds_and_reports_its_stages_in_order(case: Case, executor: EmbeddedExecutor) -> None:
    """Every stage is reported once at 0, in the order of the pipeline, and progress within a stage only grows."""
    seen: Seen = []

    result = case(seen)

    assert [stage for stage, _ in itertools.groupby(seen, key=lambda report: report[0])] == STAGES
    for stage in STAGES:
        progress = [done for name, done in seen if name == stage]
        assert progress[0] == 0
        assert progress == sorted(progress)
        assert progress[-1] <= 1
    assert list(result.seconds) == STAGES
    assert executor.ready


def test_the_child_is_kept_between_cases(case: Case, executor: EmbeddedExecutor) -> None:
    """One process computes two cases, with equal results."""
    first = case()
    pid = _pid(executor)
    second = case()

    assert _pid(executor) == pid
    assert first.files == second.files


def test_a_scan_error_keeps_its_class(
    case: Case, executor: EmbeddedExecutor, tmp_path: Path, write_nifti: Callable[..., None]
) -> None:
    """A ScanError has the same class and detail as without a child, and the child lives on."""
    bad = tmp_path / "bad.nii.gz"
    write_nifti(bad, np.full((4, 5, 6), np.nan, np.float32))
    pid = _pid(executor)

    with pytest.raises(NonFiniteVoxels, match="120 of 120 voxels"):
        case(scan=bad)

    assert case().engine == "torch"
    assert _pid(executor) == pid


def test_a_cancelled_case_stops_inside_the_sliding_window(
    case: Case, executor: EmbeddedExecutor, tmp_path: Path, write_nifti: Callable[..., None]
) -> None:
    """Most of 729 windows are not computed, no later stage begins, and the child computes the next case."""
    large = tmp_path / "large.nii.gz"
    write_nifti(large, np.random.default_rng(0).normal(size=(40, 40, 40)).astype(np.float32))
    case()
    pid = _pid(executor)
    seen: list[tuple[str, float]] = []

    with pytest.raises(JobCancelled):
        case(seen, large, cancelled=lambda: len([stage for stage, _ in seen if stage == "infer"]) > 2)

    assert seen[-1][0] == "infer"
    assert seen[-1][1] < 0.9
    assert case().engine == "torch"
    assert _pid(executor) == pid


def test_a_case_that_is_cancelled_before_it_begins_stops_at_its_first_word(case: Case) -> None:
    """A case that was cancelled before it began stops at its first report."""
    seen: Seen = []

    with pytest.raises(JobCancelled):
        case(seen, cancelled=lambda: True)

    assert seen[-1][0] in ("decode", "preprocess", "infer")


@pytest.mark.parametrize("stage", ["encode", "store"])
def test_a_late_cancellation_never_hits_the_next_case(case: Case, executor: EmbeddedExecutor, stage: str) -> None:
    """A cancellation that arrives after the case is discarded before the next case."""
    pid = _pid(executor)
    for _ in range(3):
        seen: Seen = []
        with contextlib.suppress(JobCancelled):
            case(seen, cancelled=lambda seen=seen: seen[-1][0] == stage)
        after: Seen = []
        assert case(after).engine == "torch"
        assert after[-1][0] == "store"

    assert _pid(executor) == pid


def test_a_damaged_bundle_is_refused(case: Case, tiny_bundle: Path) -> None:
    """The child verifies a bundle before computing with it."""
    (tiny_bundle / "LICENSE").write_text("changed")

    with pytest.raises(BundleIntegrity):
        case()


def test_an_unexpected_error_comes_without_its_message(
    executor: EmbeddedExecutor, description: BundleDescription, scan: Path, tmp_path: Path
) -> None:
    """Only the type of an unexpected exception leaves the child, because its message may hold a path."""
    impossible = tmp_path / "Doe^Jane\0"

    with pytest.raises(CalibrantError) as caught:
        executor.run(scan, description, impossible, lambda _stage, _done: None)

    assert type(caught.value) is CalibrantError
    assert caught.value.code == "internal-error"
    assert caught.value.detail == "The computation failed (ValueError)."


def test_f7_a_folder_that_cannot_be_written_is_told_apart(
    executor: EmbeddedExecutor, description: BundleDescription, scan: Path, tmp_path: Path
) -> None:
    """The job can wait for the storage, and the message shows no path."""
    with pytest.raises(StorageFault, match="No such file or directory") as caught:
        executor.run(scan, description, tmp_path / "Doe^Jane", lambda _stage, _done: None)

    assert "Doe" not in caught.value.detail


def test_f15_what_ends_a_child_from_outside_is_no_crash_of_its_case(executor: EmbeddedExecutor) -> None:
    """Nothing in a case sends SIGTERM; SIGKILL may come from the kernel, because the case took too much memory."""
    with executor._turn:
        child = executor._ready_child()
    os.kill(child.process.pid or 0, signal.SIGTERM)
    child.process.join(10)

    assert type(executor._death(child, late=False)) is DeviceUnavailable
    assert type(executor._death(child, late=True)) is InferenceDeadline


def test_a_child_killed_in_a_case_fails_that_case_only(case: Case, executor: EmbeddedExecutor) -> None:
    """A kill -9 during a case is InferenceCrashed for it, and the next case gets a new child."""
    case()
    pid = _pid(executor)

    with pytest.raises(InferenceCrashed, match="died"):
        case(hook=lambda: os.kill(pid, signal.SIGKILL))

    assert _gone(pid)
    assert case().engine == "torch"
    assert _pid(executor) != pid


def test_a_child_killed_while_idle_costs_at_most_one_attempt(case: Case, executor: EmbeddedExecutor) -> None:
    """After kill -9 of an idle child, at most one attempt fails."""
    case()
    pid = _pid(executor)
    os.kill(pid, signal.SIGKILL)

    try:
        case()
    except InferenceCrashed:
        case()

    assert _pid(executor) != pid


def test_a_hanging_child_is_killed_at_the_deadline(
    case: Case, executor: EmbeddedExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hanging child is InferenceDeadline and is killed, and the next case works."""
    case()
    pid = _pid(executor)
    with monkeypatch.context() as patch:
        patch.setattr(executor, "_deadline_s", 0.5)
        started = time.monotonic()
        with pytest.raises(InferenceDeadline, match="longer than"):
            case(hook=lambda: os.kill(pid, signal.SIGSTOP))
        assert time.monotonic() - started < 10

    assert _gone(pid)
    assert case().engine == "torch"


def test_a_child_that_cannot_start_is_given_up(
    description: BundleDescription, scan: Path, executor: EmbeddedExecutor, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After several children that die while loading, the case fails with advice for the operator."""
    monkeypatch.setattr("service.executors.embedded.START_ATTEMPTS", 2)
    monkeypatch.setattr("service.executors.embedded.serve", os._exit)  # takes one argument: the child dies at once
    unlucky = EmbeddedExecutor(deadline_s=1.0)

    with pytest.raises(DeviceUnavailable, match="on cpu could not be started"):
        unlucky.run(scan, description, Path(), lambda _stage, _done: None)

    unlucky.stop()
    assert case().engine == "torch"
    assert executor.ready


def test_stopping_interrupts_a_running_case(case: Case, executor: EmbeddedExecutor) -> None:
    """`stop` ends a hanging case with ExecutorStopped, and leaves no process.

    If both threads close the pipe, the barrier makes them do so at the same moment: the second would close a descriptor
    that may already belong to something else.
    """
    case()
    pid = _pid(executor)
    assert executor._child is not None
    pipe: Any = executor._child.pipe
    both = threading.Barrier(2)
    close = pipe._close

    def close_together() -> None:
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(0.5)
        close()

    pipe._close = close_together
    caught: list[BaseException] = []
    hangs = threading.Event()

    def hang() -> None:
        os.kill(pid, signal.SIGSTOP)
        hangs.set()

    def run() -> None:
        try:
            case(hook=hang)
        except BaseException as error:  # noqa: BLE001 - which one is the question
            caught.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    assert hangs.wait(30)
    try:
        executor.stop()
    finally:
        thread.join(30)

    assert [type(error) for error in caught] == [ExecutorStopped]
    assert _gone(pid)
    assert not executor.ready
    with pytest.raises(ExecutorStopped):
        case()


def test_stopping_while_the_child_loads_ends_it(description: BundleDescription, scan: Path) -> None:
    """A case that waits for its first child gets ExecutorStopped at once, and the child is gone."""
    executor = EmbeddedExecutor(deadline_s=1.0)
    executor.start()
    pid = _pid(executor)
    assert not executor.ready
    threading.Timer(0.3, executor.stop).start()

    with pytest.raises(ExecutorStopped):
        executor.run(scan, description, Path(), lambda _stage, _done: None)

    assert _gone(pid)


def test_stopping_while_a_child_is_started_leaves_no_child(
    description: BundleDescription, scan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop between the check and the start of a child does not leave the child behind."""
    executor = EmbeddedExecutor(deadline_s=1.0)
    check = executor._reject_stopped

    def stopped_just_after() -> None:
        check()
        executor.stop()

    monkeypatch.setattr(executor, "_reject_stopped", stopped_just_after)
    try:
        with pytest.raises(ExecutorStopped):
            executor.run(scan, description, Path(), lambda _stage, _done: None)
        assert executor._child is None or not executor._child.process.is_alive()
    finally:
        if executor._child is not None:
            executor._child.end()


def test_an_executor_that_never_started_can_be_stopped() -> None:
    """Stopping without a child works, and starting afterwards is refused."""
    executor = EmbeddedExecutor(deadline_s=1.0)
    assert not executor.ready
    executor.stop()

    with pytest.raises(ExecutorStopped):
        executor.start()


def test_only_what_is_wanted_is_kept(
    executor: EmbeddedExecutor, description: BundleDescription, scan: Path, tmp_path: Path
) -> None:
    """If only the mask is requested, the child writes neither confidence nor logits."""
    result = executor.run(scan, description, tmp_path, lambda _stage, _done: None, outputs=("mask",))

    assert "mask.nii.gz" in result.files
    assert not {"confidence.nii.gz", "logits.npy.gz", "summary.json"} & {path.name for path in tmp_path.iterdir()}


def test_a_forgotten_bundle_is_read_from_the_disk_again(
    case: Case, executor: EmbeddedExecutor, description: BundleDescription
) -> None:
    """The child keeps a network without its files, and needs them again once it was told to forget it."""
    case()
    weights = description.root / "models" / "model.safetensors"
    weights.rename(weights.with_suffix(".aside"))
    assert case().engine == "torch"

    executor.forget(description)

    with pytest.raises(BundleIntegrity):
        case()


def test_a_bundle_that_was_replaced_on_the_disk_does_not_run_as_the_earlier_one(
    case: Case, executor: EmbeddedExecutor, description: BundleDescription, reseal: Callable[[Path], str]
) -> None:
    """A job never gets the result of another version than it names."""
    (description.root / "LICENSE").write_text("Other rights.\n")
    reseal(description.root)
    executor.forget(description)

    with pytest.raises(BundleIntegrity, match="another version"):
        case()


def test_a_case_that_needs_too_much_memory_fails_by_itself(
    description: BundleDescription, scan: Path, tmp_path: Path, write_nifti: Callable[..., None]
) -> None:
    """The error gives the limit and what to do; the child lives on and computes the next case."""
    large = tmp_path / "large.nii"
    write_nifti(large, np.arange(256**3, dtype=np.uint16).reshape(256, 256, 256))
    executor = EmbeddedExecutor(deadline_s=100.0, memory_bytes=450 << 20)
    try:
        executor.run(scan, description, tmp_path, lambda _stage, _done: None)
        pid = _pid(executor)

        with pytest.raises(InferenceOutOfMemory, match=r"more than the 0\.4 GiB .*CALIBRANT_MEMORY_BYTES"):
            executor.run(large, description, tmp_path, lambda _stage, _done: None)

        (tmp_path / "again").mkdir()
        assert executor.run(scan, description, tmp_path / "again", lambda _stage, _done: None).engine == "torch"
        assert _pid(executor) == pid
    finally:
        executor.stop()


def test_a_warm_bundle_is_loaded_before_its_first_case(
    description: BundleDescription, scan: Path, tmp_path: Path
) -> None:
    """A ready child has loaded the bundle, so that its first case does not need the files."""
    executor = EmbeddedExecutor(deadline_s=100.0, warm=description)
    try:
        executor._ready_child()
        (description.root / "models" / "model.safetensors").unlink()

        result = executor.run(scan, description, tmp_path, lambda _stage, _done: None)

        assert result.model == description.identity
    finally:
        executor.stop()
