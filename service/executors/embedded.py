"""One device and the resident child process that computes on it, one case at a time.

A crash, a hang or a leak in the child does not affect the API. A device that fails again and again rests, and is then tried
again: a case that has not begun waits meanwhile.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection, process
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, Final, get_args

import structlog

from service.bundle.acceptance import AS_STATED, Admission
from service.bundle.description import BundleDescription
from service.bundle.engine_kind import AUTO
from service.engines.devices import CPU, Device
from service.errors import CalibrantError, DeviceUnavailable, InferenceCrashed, InferenceDeadline, from_code
from service.executors.memory import machine_memory_bytes
from service.executors.resident import CANCEL, FAILED, FAULT, FORGET, READY, RUN, STAGE, UNUSABLE, Terms, serve
from service.schemas import CaseResult, Output, Report
from service.storage.scratch import scratch

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

START_DEADLINE_S: Final = 120.0
"""Seconds within which a child must have loaded its libraries and computed something."""

START_ATTEMPTS: Final = 5
"""Children that are started in a row before the device rests."""

KILL_S: Final = 10.0
"""Seconds within which a killed child must be gone; one that is stuck in a driver may never be."""

LOOK_S: Final = 0.5
"""Seconds between two looks at a child that is silent, or at one that may have died while idle."""

MAX_FAULTS: Final = 3
"""Times in a row a device may fail before it rests."""

REST_S: Final = (10.0, 300.0)
"""Seconds of the first rest of a device and of the longest; each is twice as long as the one before."""


FROM_OUTSIDE: Final = frozenset({-signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP, -signal.SIGQUIT})
"""Exit codes of a child that somebody has ended."""


class ExecutorStopped(BaseException):
    """The service ends during a case. Not an `Exception`, so that nothing takes it for the outcome of the case."""


class _ChildLost(Exception):
    """The child died; or it was silent at the deadline."""

    def __init__(self, *, late: bool) -> None:
        super().__init__()
        self.late = late


@dataclass(slots=True)
class _Child:
    process: SpawnProcess
    pipe: "connection.Connection[Any, Any]"
    ready: bool = False

    def receive(self, seconds: float, rejects_stop: Callable[[], None]) -> tuple[Any, ...]:
        """Return the next message.

        A killed child that is stuck in a driver keeps its end of the pipe open: only a look at the clock ends the wait.

        Raises:
            _ChildLost: the child died, or said nothing for so many seconds.
            ExecutorStopped: by `rejects_stop`.
        """
        deadline = time.monotonic() + seconds
        try:
            while (left := deadline - time.monotonic()) > 0:
                if self.pipe.poll(min(left, LOOK_S)):
                    return self.pipe.recv()
                rejects_stop()
        except (EOFError, OSError) as error:
            raise _ChildLost(late=False) from error
        raise _ChildLost(late=True)

    def kill(self) -> bool:
        """Kill the child, even a suspended one, and return whether it is gone. Any thread may call this."""
        self.process.kill()
        deadline = time.monotonic() + KILL_S
        while self.process.is_alive() and time.monotonic() < deadline:
            self.process.join(LOOK_S)
        return not self.process.is_alive()

    def end(self) -> bool:
        """Kill the child, close its pipe and return whether it is gone. Only the thread that holds `_turn` may call this."""
        gone = self.kill()
        self.pipe.close()
        if not gone:  # Python would wait for it when this process ends
            process._children.discard(self.process)  # type: ignore[attr-defined]  # noqa: SLF001
        return gone


class EmbeddedExecutor:
    """Owns the child process of one device and restarts it when it has died."""

    def __init__(
        self,
        *,
        deadline_s: float,
        device: Device = CPU,
        memory_bytes: int | None = None,
        engine: str = AUTO,
        state: Path | None = None,
        warm: BundleDescription | None = None,
    ) -> None:
        """Prepare without starting.

        Args:
            deadline_s: seconds after which a case is given up and the child killed.
            device: that computes.
            memory_bytes: memory that the child may use on the CPU; by default all of the machine.
            engine: engine that runs the networks, as for `service.engines.ready.ready_bundle`.
            state: directory of measurements and prepared networks; None for none.
            warm: bundle that every child loads before its first case, so that its preparation delays no case.
        """
        self.device = device
        self.why_not: str | None = None
        """A sentence, if the device cannot be used at the moment and rests."""
        self.description = ""
        """What the device is, once it has computed: name, compute capability, memory, driver."""
        self.judged = threading.Event()
        """Set once the device was found to compute, or not to."""
        root = None if warm is None else (warm.root, warm.identity)
        self._terms = Terms(device, memory_bytes or machine_memory_bytes(), engine, state, root)
        self._deadline_s = deadline_s
        self._stopped = threading.Event()
        self._turn = threading.Lock()
        self._child: _Child | None = None
        self._faults = 0
        self._rests = 0
        self._rests_until = 0.0

    def start(self) -> None:
        """Start the child, which imports torch in the background, and a thread that replaces it whenever it dies."""
        with self._turn:
            self._living_child()
        threading.Thread(target=self._keep, name=f"keeper of {self.device.name}", daemon=True).start()

    def stop(self) -> None:
        """Kill the child for good; its running case raises `ExecutorStopped`."""
        self._stopped.set()
        self.judged.set()
        if self._child is not None:
            self._child.kill()

    @property
    def ready(self) -> bool:
        """Whether the child lives and its device has computed."""
        child = self._child
        return child is not None and child.ready and child.process.is_alive() and self.why_not is None

    def run(  # noqa: PLR0913, PLR0917 - the arguments of `run_case`
        self,
        scan: Path,
        bundle: BundleDescription,
        out: Path,
        report: Report,
        cancelled: Callable[[], bool] = lambda: False,
        outputs: tuple[Output, ...] = get_args(Output),
        admission: Admission = AS_STATED,
    ) -> CaseResult:
        """Run `run_case` in the child and return its result.

        Args:
            scan: file of the scan.
            bundle: bundle to run.
            out: folder that the child writes to.
            report: called with each stage and its progress.
            cancelled: returns whether the case was cancelled; called after each report, e.g. of a window.
            outputs: outputs to keep; all by default.
            admission: what the caller says about the scan.

        Raises:
            DeviceUnavailable: no child could be started; the case has not begun.
            JobCancelled: the case was cancelled.
            InferenceCrashed: the child died, or its device failed.
            InferenceDeadline: the child took too long and was killed.
            InferenceOutOfMemory: the case needs more memory than the child may use, or than the device has.
            BundleIntegrity: the bundle on the disk has changed.
            ExecutorStopped: `stop` was called meanwhile.
            CalibrantError: whatever else `run_case` raised.
        """
        with self._turn:
            child = self._ready_child()
            try:
                with suppress(OSError):  # a child that has died is noticed when it is listened to
                    child.pipe.send((RUN, (scan, bundle.root, bundle.identity, out, outputs, admission)))
                end, *content = self._listen(child, report, cancelled)
            except (_ChildLost, ExecutorStopped) as error:
                self._end(child)
                self._reject_stopped()
                raise self._death(child, late=isinstance(error, _ChildLost) and error.late) from error
            if end == FAULT:
                self._end(child)
                self._note_fault(content[0])
                raise InferenceCrashed(content[0])
            self._faults = self._rests = 0
            if end == FAILED:
                raise from_code(*content)
            return CaseResult.model_validate_json(content[0])

    def forget(self, bundle: BundleDescription) -> None:
        """Free a bundle's memory in the child, once the running case has ended."""
        with self._turn:
            if self._child is not None:
                with suppress(OSError):  # a child that has died has forgotten everything
                    self._child.pipe.send((FORGET, bundle.root))

    def _listen(self, child: _Child, report: Report, cancelled: Callable[[], bool]) -> tuple[Any, ...]:
        """Pass reports on and return the message about the end of the case."""
        deadline = time.monotonic() + self._deadline_s
        notified = False
        while True:
            message, *content = child.receive(deadline - time.monotonic(), self._reject_stopped)
            if message != STAGE:
                return message, *content
            report(*content)
            if not notified and cancelled():
                with suppress(OSError):  # as above
                    child.pipe.send((CANCEL, None))
                notified = True

    def _death(self, child: _Child, *, late: bool) -> CalibrantError:
        if late:
            return InferenceDeadline(f"The case took longer than {self._deadline_s:.0f} s and was stopped.")
        if child.process.exitcode in FROM_OUTSIDE:  # no case does that to itself: it does not count as its crash
            return DeviceUnavailable("The process that computed the case was ended by somebody.")
        return InferenceCrashed("The process that computed the case died.")

    def _keep(self) -> None:
        """Replace the child whenever it has died, so that the service is ready again before the next case comes."""
        while not self._stopped.is_set():
            if not self.ready and time.monotonic() >= self._rests_until:
                with suppress(DeviceUnavailable, ExecutorStopped), self._turn:
                    self._ready_child()
            self._stopped.wait(LOOK_S)

    def _ready_child(self) -> _Child:
        # Loading is not part of the case: neither its time nor the death of a child during it counts.
        why = f"The process that computes on {self.device.name} could not be started. Tell the operator."
        for _ in range(START_ATTEMPTS):
            child = self._living_child()
            if child.ready:
                return child
            try:
                message, *content = child.receive(START_DEADLINE_S, self._reject_stopped)
            except _ChildLost:
                self._end(child)
                continue
            if message == READY:
                child.ready, self.why_not, self.description = True, None, content[0]
                self.judged.set()
                log.info("ready to compute", device=self.device.name)
                return child
            self._end(child)
            if message == UNUSABLE:  # the next child would say the same
                why = content[0]
                break
        self._rest(why)
        raise DeviceUnavailable(why)

    def _end(self, child: _Child) -> None:
        child.ready = False
        if not child.end():
            self._rest(f"The process that computes on {self.device.name} cannot be ended: it is stuck in the driver.")

    def _note_fault(self, why: str) -> None:
        self._faults += 1
        log.warning("device failed", device=self.device.name)
        if self._faults >= MAX_FAULTS:
            self._rest(f"{why} That happened {self._faults} times in a row.")

    def _rest(self, why: str) -> None:
        first, longest = REST_S
        seconds = min(first * 2**self._rests, longest)
        self._rests += 1
        self._rests_until = time.monotonic() + seconds
        self.why_not = why
        if self.judged.is_set():  # who waits for the first judgement says what it was
            log.error("device rests", device=self.device.name, seconds=seconds)
        self.judged.set()

    def _reject_stopped(self) -> None:
        if self._stopped.is_set():
            raise ExecutorStopped

    def _living_child(self) -> _Child:
        self._reject_stopped()
        former = self._child
        if former is not None and former.process.is_alive():
            if not former.pipe.closed:
                return former
            why = f"The process that computes on {self.device.name} cannot be ended: it is stuck in the driver."
            self._rest(why)
            raise DeviceUnavailable(why)
        if former is not None:
            former.pipe.close()
            log.warning("inference process restarted", device=self.device.name)
        self._child = self._new_child()
        if self._stopped.is_set():  # stop() may have been called before this child was stored
            self._child.end()
        self._reject_stopped()
        return self._child

    def _new_child(self) -> _Child:
        scratch()  # which the child shares: it may be killed
        ours, theirs = _PROCESSES.Pipe()
        os.environ.update({name: value for name, value in ENVIRONMENT.items() if name not in os.environ})
        child = _PROCESSES.Process(target=serve, args=(theirs, self._terms), name="calibrant-inference")
        child.start()
        theirs.close()
        return _Child(child, ours)
