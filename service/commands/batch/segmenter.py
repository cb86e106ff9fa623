"""Computes the cases of a batch, by a running service or by a process on this machine."""

import hashlib
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from service.bundle.registry import DEFAULT_MODEL
from service.client.calls import Order
from service.client.http import Client
from service.commands.batch.results import Segmented
from service.commands.batch.signals import interrupts_blocked
from service.commands.predict import admission_of, installed
from service.engines.devices import CPU
from service.errors import BundleError, DeviceUnavailable, InferenceCrashed, ModelNotFound
from service.executors.pool import MAX_ATTEMPTS, ExecutorPool
from service.result.files import CONFIDENCE, MASK, SUMMARY
from service.schemas import Accept, Job, Output, Summary
from service.settings import Settings

OUTPUTS: tuple[Output, ...] = ("mask", "confidence", "summary")

Show = Callable[[str], None]
"""Called with what is being done with a case."""


class Segmenter(Protocol):
    """Computes cases; a context manager, and threads may share it."""

    identity: str
    """name@sha256 of the bundle."""
    size: int | None
    """Number of cases that it can compute at once; None if that is not known here."""

    def segment(self, scan: Path, key: str, show: Show) -> Segmented:
        """Segment a scan and return the results.

        Args:
            scan: file of the scan.
            key: identifies this attempt; a service never computes the same key twice.
            show: called with what is being done.

        Raises:
            CalibrantError: the case failed.
        """
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Remote:
    """Segments by a running service."""

    size: int | None = None

    def __init__(self, url: str, model: str | None, accept: Accept = "stated") -> None:
        """Ask the service for the model.

        Raises:
            ClientError: no server answered, or it refused.
            ModelNotFound: the model is not installed there.
            BundleError: the model is installed, but cannot be served.
        """
        self._accept = accept
        self._client = Client(url)
        try:
            self.identity = _identity(self._client, model)
        except BaseException:
            self._client.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def segment(self, scan: Path, key: str, show: Show) -> Segmented:
        """Submit the scan, wait and download; a server that is restarted meanwhile goes on with the same job."""
        show("sending")
        order = Order(
            scan, self.identity, OUTPUTS, "background", hashlib.sha256(key.encode()).hexdigest(), self._accept
        )
        job = self._client.wait(self._client.submit(order), lambda job: show(_state_of(job)))
        result = self._client.fetch(job)
        return Segmented(result.mask, result.confidence, result.summary)


class Local:
    """Segments in a process for each device of this machine; the crash of one does not end the batch."""

    def __init__(self, model: str | None, accept: Accept = "stated") -> None:
        """Find the model; the first case starts the processes, or, where a GPU might be missing, entering does.

        Raises:
            ModelNotFound: the model is not installed here.
            SettingsError: the settings cannot be used.
        """
        settings = Settings.read()
        self._accept = accept
        self._bundle = installed(model)
        self.identity = self._bundle.identity
        self._executor = ExecutorPool.of(settings, warm=self._bundle)
        self.size: int | None = self._executor.size

    def __enter__(self) -> Self:
        """Start the processes, if one of them needs a GPU.

        Raises:
            DeviceUnavailable: no device computes.
        """
        if CPU.name not in self._executor.names:
            with interrupts_blocked():
                self._executor.start()
            self._executor.await_verdict()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._executor.stop()

    def segment(self, scan: Path, key: str, show: Show) -> Segmented:
        """Run the pipeline on a free device; a case that kills its process is tried again, as a service does."""
        del key
        show("waiting for the model")
        self._executor.start()
        self._executor.await_verdict()
        for _ in range(MAX_ATTEMPTS - 1):
            with suppress(InferenceCrashed):
                return self._compute(scan, show)
        return self._compute(scan, show)

    def _compute(self, scan: Path, show: Show) -> Segmented:
        with tempfile.TemporaryDirectory(prefix="calibrant-") as folder:
            work = Path(folder)
            with self._executor.lend(self._reject_no_device) as device:
                admission = admission_of(scan, self._accept)
                device.run(scan, self._bundle, work, lambda stage, _: show(stage), admission=admission)
            summary = Summary.model_validate_json((work / SUMMARY).read_bytes())
            return Segmented((work / MASK).read_bytes(), (work / CONFIDENCE).read_bytes(), summary)

    def _reject_no_device(self) -> None:
        if (why_not := self._executor.why_not) is not None:
            raise DeviceUnavailable(why_not)


def _identity(client: Client, model: str | None) -> str:
    models = client.models()
    name, _, sha256 = (model or models.default or DEFAULT_MODEL).partition("@")
    by_name = {installed_model.name: installed_model for installed_model in models.models}
    requested = by_name.get(name)
    if requested is None or (sha256 and requested.identity != f"{name}@{sha256}"):
        msg = f"The requested model is not installed there. Installed: {', '.join(sorted(by_name))}."
        raise ModelNotFound(msg)
    if not requested.ready or requested.identity is None:
        msg = f"The model cannot be served there: {requested.why_not}"
        raise BundleError(msg)
    return requested.identity


def _state_of(job: Job) -> str:
    if job.state == "queued" and job.queue_position is not None:
        return f"queued behind {job.queue_position}"
    return job.stage or job.state
