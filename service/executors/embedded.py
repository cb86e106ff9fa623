"""One resident child process that keeps the networks in memory and computes one case at a time.

A crash, a hang or a leak in the child does not affect the API. The child writes into a folder of its own and publishes
nothing, so that one that was given up and comes back to life cannot damage a result.
"""

import multiprocessing
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args

import structlog

from service.bundle.description import BundleDescription
from service.bundle.engine_kind import AUTO
from service.errors import (
    BundleIntegrity,
    CalibrantError,
    InferenceCrashed,
    InferenceDeadline,
    InferenceOutOfMemory,
    JobCancelled,
    from_code,
)
from service.executors.memory import limit_memory, machine_memory_bytes, ran_out_of_memory
from service.observability.log import configure_logging
from service.schemas import CaseResult, Output, Report, Stage

if TYPE_CHECKING:
    from service.bundle.reader import LoadedBundle

log = structlog.get_logger(__name__)

_PROCESSES: Final = multiprocessing.get_context("spawn")

ENVIRONMENT: Final = {
    # Threads that sleep at a barrier are faster than spinning ones as soon as other processes need the cores.
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "0",
    # glibc keeps up to 256 MiB of freed arrays below 32 MiB: fetching memory from the kernel for each case is slow.
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(256 << 20),
}
"""Environment variables of the child, unless the parent's environment sets them."""


_RUN, _CANCEL, _FORGET = "run", "cancel", "forget"
"""Messages to the child, each followed by its arguments."""

START_DEADLINE_S: Final = 120.0
"""Seconds within which a child must have loaded its libraries."""

START_ATTEMPTS: Final = 5
"""Children that are started in a row before a case is given up."""


@dataclass(slots=True)
class _Child:
    process: SpawnProcess
    pipe: "connection.Connection[Any, Any]"
    ready: bool = False

    def become_ready(self) -> bool:
        """Wait until the child has loaded its libraries; return whether it has."""
        try:
            self.ready = self.ready or (self.pipe.poll(START_DEADLINE_S) and self.pipe.recv() == ("ready",))
        except (EOFError, OSError):
            self.ready = False
        return self.ready

    def kill(self) -> None:
        """Kill the child, even a suspended one, and wait until it is gone. Any thread may call this."""
        self.process.kill()
        self.process.join()

    def end(self) -> None:
        """Kill the child and close its pipe. Only the thread that holds `_turn` may call this."""
        self.kill()
        self.pipe.close()


class ExecutorStopped(BaseException):
    """The service ends during a case. Not an `Exception`, so that nothing takes it for the outcome of the case."""


class EmbeddedExecutor:
    """Owns the child process and restarts it when it has died."""

    def __init__(
        self,
        *,
        device: str,
        deadline_s: float,
        memory_bytes: int | None = None,
        engine: str = AUTO,
        state: Path | None = None,
        warm: BundleDescription | None = None,
    ) -> None:
        """Prepare without starting.

        Args:
            device: torch device of the child.
            deadline_s: seconds after which a case is given up and the child killed.
            memory_bytes: memory that the child may use on the CPU; by default all of the machine.
            engine: engine that runs the networks, as for `service.engines.ready.ready_bundle`.
            state: directory of measurements and prepared networks; None for none.
            warm: bundle that every child loads before its first case, so that its preparation delays no case.
        """
        self._engine = engine
        self._state = state
        self._warm = None if warm is None else (warm.root, warm.identity)
        self._device = device
        self._deadline_s = deadline_s
        self._memory_bytes = memory_bytes or machine_memory_bytes()
        self._stopped = False
        self._turn = threading.Lock()
        self._child: _Child | None = None

    def start(self) -> None:
        """Start the child; it imports torch in the background."""
        with self._turn:
            self._living_child()

    def stop(self) -> None:
        """Kill the child for good; its running case raises `ExecutorStopped`."""
        self._stopped = True
        if self._child is not None:
            self._child.kill()

    @property
    def ready(self) -> bool:
        """Whether the child is alive."""
        child = self._child
        return child is not None and child.process.is_alive()

    def run(
        self,
        scan: Path,
        bundle: BundleDescription,
        out: Path,
        report: Report,
        cancelled: Callable[[], bool] = lambda: False,
        outputs: tuple[Output, ...] = get_args(Output),
    ) -> CaseResult:
        """Run `run_case` in the child and return its result.

        Args:
            scan: file of the scan.
            bundle: bundle to run.
            out: folder that the child writes to.
            report: called with each stage and its progress.
            cancelled: returns whether the case was cancelled; called after each report, e.g. of a window.
            outputs: outputs to keep; all by default.

        Raises:
            JobCancelled: the case was cancelled.
            InferenceCrashed: the child died.
            InferenceDeadline: the child took too long and was killed.
            InferenceOutOfMemory: the case needs more memory than the child may use.
            BundleIntegrity: the bundle on the disk has changed.
            ExecutorStopped: `stop` was called meanwhile.
            CalibrantError: whatever else `run_case` raised.
        """
        with self._turn:
            child = self._ready_child()
            overdue = threading.Event()

            def stop() -> None:
                overdue.set()
                child.process.kill()

            alarm = threading.Timer(self._deadline_s, stop)
            alarm.start()
            try:
                child.pipe.send((_RUN, (scan, bundle.root, bundle.identity, out, outputs)))
                return _listen(child, report, cancelled)
            except (EOFError, OSError) as error:
                child.end()
                self._reject_stopped()
                raise self._death(late=overdue.is_set()) from error
            finally:
                alarm.cancel()

    def forget(self, bundle: BundleDescription) -> None:
        """Free a bundle's memory in the child, once the running case has ended."""
        with self._turn:
            if self._child is not None:
                with suppress(OSError):  # a child that has died has forgotten everything
                    self._child.pipe.send((_FORGET, bundle.root))

    def _death(self, *, late: bool) -> CalibrantError:
        if late:
            return InferenceDeadline(f"The case took longer than {self._deadline_s:.0f} s and was stopped.")
        return InferenceCrashed("The process that computed the case died.")

    def _ready_child(self) -> _Child:
        # Loading is not part of the case: neither its time nor the death of a child during it counts.
        for _ in range(START_ATTEMPTS):
            child = self._living_child()
            if child.become_ready():
                return child
            child.end()
        msg = "The inference process could not be started. Tell the operator."
        raise InferenceCrashed(msg)

    def _reject_stopped(self) -> None:
        if self._stopped:
            raise ExecutorStopped

    def _living_child(self) -> _Child:
        self._reject_stopped()
        if self._child is None or not self._child.process.is_alive():
            if self._child is not None:
                self._child.pipe.close()
                log.warning("inference process restarted")
            ours, theirs = _PROCESSES.Pipe()
            os.environ.update({name: value for name, value in ENVIRONMENT.items() if name not in os.environ})
            process = _PROCESSES.Process(
                target=_serve,
                args=(theirs, self._device, self._memory_bytes, self._engine, self._state, self._warm),
                name="calibrant-inference",
            )
            process.start()
            theirs.close()
            self._child = _Child(process, ours)
            if self._stopped:  # stop() may have been called before this child was stored
                self._child.end()
        self._reject_stopped()
        return self._child


def _listen(child: _Child, report: Report, cancelled: Callable[[], bool]) -> CaseResult:
    notified = False
    while True:
        message, *content = child.pipe.recv()
        if message == "stage":
            report(*content)
            if not notified and cancelled():
                child.pipe.send((_CANCEL, None))
                notified = True
        elif message == "failed":
            code, detail = content
            raise from_code(code, detail)
        else:
            return CaseResult.model_validate_json(content[0])


def _serve(
    pipe: "connection.Connection[Any, Any]",
    device: str,
    memory_bytes: int,
    engine: str,
    state: Path | None,
    warm: tuple[Path, str] | None,
) -> None:
    threading.Thread(target=_die_with_parent, daemon=True).start()
    configure_logging()
    if device == "cpu":  # a GPU driver maps more memory than it uses
        limit_memory(memory_bytes)

    from service.pipeline.run import run_case

    networks = _Networks(device, engine, state)

    def compute(scan: Path, root: Path, identity: str, out: Path, outputs: tuple[Output, ...]) -> str:
        return run_case(scan, networks.load(root, identity), out, partial(_report, pipe), outputs).model_dump_json()

    if warm is not None:
        # The first case of the bundle meets the same error and reports it.
        _outcome(lambda: networks.load(*warm).description.identity, memory_bytes)
    pipe.send(("ready",))
    while True:
        try:
            message, order = pipe.recv()
        except EOFError:
            return
        if message == _FORGET:
            networks.forget(order)
        if message != _RUN:  # a cancellation that came too late: its case has ended
            continue
        pipe.send(_outcome(partial(compute, *order), memory_bytes))


@dataclass(slots=True)
class _Networks:
    """The bundles that the child keeps in memory."""

    device: str
    engine: str
    state: Path | None
    _loaded: "dict[Path, LoadedBundle]" = field(default_factory=dict)

    def load(self, root: Path, identity: str) -> "LoadedBundle":
        """Return the bundle of this identity, from the disk unless it was loaded before."""
        import torch

        from service.engines.ready import ready_bundle

        bundle = self._loaded.get(root)
        if bundle is None or bundle.description.identity != identity:
            bundle = ready_bundle(root, torch.device(self.device), self.engine, self.state)
            if bundle.description.identity != identity:
                msg = (
                    "The disk holds another version of the model than the one in service. An administrator can load it."
                )
                raise BundleIntegrity(msg)
            self._loaded[root] = bundle
        return bundle

    def forget(self, root: Path) -> None:
        """Free the memory of a bundle."""
        self._loaded.pop(root, None)


def _outcome(work: Callable[[], str], memory_bytes: int) -> tuple[str, ...]:
    """Do the work and return the message about its end."""
    try:
        return "done", work()
    except Exception as error:  # noqa: BLE001 - the wall of the worker loop: one case must not end the others
        return "failed", *_failure(error, memory_bytes)


def _failure(error: Exception, memory_bytes: int) -> tuple[str, str]:
    """Return code and detail of the error that ended a case."""
    if isinstance(error, CalibrantError):
        return error.code, error.detail
    if ran_out_of_memory(error):
        return InferenceOutOfMemory.code, (
            f"The case needs more than the {memory_bytes / (1 << 30):.1f} GiB that inference may use. "
            "Crop or downsample the scan, or ask the operator for more (CALIBRANT_MEMORY_BYTES)."
        )
    # The message may hold what the user sent; the type does not.
    log.error("case failed", error=type(error).__name__)
    return CalibrantError.code, f"The computation failed ({type(error).__name__})."


def _report(pipe: "connection.Connection[Any, Any]", stage: Stage, done: float) -> None:
    """Report progress to the parent, and end the case if it was cancelled."""
    pipe.send(("stage", stage, done))
    if pipe.poll() and pipe.recv()[0] == _CANCEL:
        msg = "The job was cancelled while it ran."
        raise JobCancelled(msg)


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
