"""The devices of a service, one executor each: lends the next case a device that is free and computes."""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Final, Self

import structlog

from service.bundle.description import BundleDescription
from service.engines.devices import CPU, devices_of
from service.errors import DeviceUnavailable
from service.executors.embedded import EmbeddedExecutor, ExecutorStopped
from service.executors.memory import machine_memory_bytes
from service.settings import Settings

log = structlog.get_logger(__name__)

MAX_ATTEMPTS: Final = 3
"""Times a case may kill or hang a child, or meet a failing device, before it fails."""

LOOK_S: Final = 0.1
"""Seconds between two looks of a case that waits whether a device has become ready."""


class ExecutorPool:
    """Executors of which each serves one case at a time; one that fails does not hold up the others."""

    def __init__(self, executors: Sequence[EmbeddedExecutor]) -> None:
        """Take the executors, not yet started."""
        self._executors = tuple(executors)
        self._lent: set[EmbeddedExecutor] = set()
        self._line: deque[object] = deque()
        self._changed = threading.Condition()
        self._started = self._stopped = False

    @classmethod
    def of(cls, settings: Settings, warm: BundleDescription | None) -> Self:
        """Return an executor for each device of the settings.

        Args:
            settings: of the service or the command.
            warm: bundle that is loaded before the first case.

        Raises:
            SettingsError: CALIBRANT_DEVICE names no devices.
        """
        devices = devices_of(settings.device)
        on_cpu = max(sum(device.is_cpu for device in devices), 1)
        memory_bytes = settings.memory_bytes or machine_memory_bytes() // on_cpu
        return cls(
            [
                EmbeddedExecutor(
                    device=device,
                    deadline_s=settings.case_deadline_s,
                    memory_bytes=memory_bytes,
                    engine=settings.engine,
                    state=settings.state_dir,
                    warm=warm,
                )
                for device in devices
            ]
        )

    def start(self) -> None:
        """Start the children of all executors, once."""
        with self._changed:
            if self._started:
                return
            self._started = True
        for executor in self._executors:
            executor.start()

    def stop(self) -> None:
        """End all children for good; running and waiting cases raise `ExecutorStopped`."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        for executor in self._executors:
            executor.stop()

    @property
    def size(self) -> int:
        """Number of executors."""
        return len(self._executors)

    @property
    def working(self) -> int:
        """Number of executors whose devices compute at the moment."""
        return sum(executor.ready for executor in self._executors)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the devices."""
        return tuple(executor.device.name for executor in self._executors)

    @property
    def ready(self) -> bool:
        """Whether a device computes."""
        return self.working > 0

    @property
    def why_not(self) -> str | None:
        """A sentence for each device that rests after failures; None as long as one computes or still starts."""
        reasons = [executor.why_not for executor in self._executors]
        return None if self.ready or None in reasons else " ".join(dict.fromkeys(filter(None, reasons)))

    def await_verdict(self) -> None:
        """Wait until a GPU computes, or all devices are known not to; that a CPU is there needs no proof.

        Raises:
            DeviceUnavailable: none computes; the children have been ended, as by whatever else interrupts the wait.
        """
        with ExitStack() as unless_one_computes:
            unless_one_computes.callback(self.stop)
            while CPU.name not in self.names and not self.ready:
                if all(executor.judged.wait(LOOK_S) for executor in self._executors):
                    break
            if self.why_not is not None:
                raise DeviceUnavailable(self.why_not)
            unless_one_computes.pop_all()
        for executor in self._executors:
            if executor.why_not is not None:
                log.error("device cannot be used", device=executor.device.name)

    @contextmanager
    def lend(self, check: Callable[[], None] = lambda: None) -> Iterator[EmbeddedExecutor]:
        """Lend an executor that is free and ready, to those that wait in the order of their coming.

        Args:
            check: called before each look for a device; it ends the wait by raising.

        Raises:
            ExecutorStopped: the service ends.
        """
        executor = self._await_free(check)
        try:
            yield executor
        finally:
            with self._changed:
                self._lent.discard(executor)
                self._changed.notify_all()

    def forget(self, bundle: BundleDescription) -> None:
        """Free a bundle's memory in every child, once its running case has ended."""
        for executor in self._executors:
            executor.forget(bundle)

    def _await_free(self, check: Callable[[], None]) -> EmbeddedExecutor:
        place = object()
        with self._changed:
            self._line.append(place)
            try:
                while True:
                    if self._stopped:
                        raise ExecutorStopped
                    check()
                    free = [executor for executor in self._executors if executor not in self._lent and executor.ready]
                    if free and self._line[0] is place:
                        self._lent.add(free[0])
                        return free[0]
                    self._changed.wait(LOOK_S)
            finally:
                self._line.remove(place)
                self._changed.notify_all()
