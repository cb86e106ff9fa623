"""What a resident child process does: claim its device, keep the networks in memory, compute one case at a time.

It writes into the folder of a case and publishes nothing, so that one that was given up and comes back to life cannot damage
a result. It ends by itself once its device has failed: nothing computed there can be trusted any more.
"""

import multiprocessing
import os
import sys
import threading
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import structlog

from service.bundle.acceptance import Admission
from service.engines.devices import Device, claim, describe
from service.errors import BundleIntegrity, CalibrantError, DeviceUnavailable, JobCancelled
from service.executors.faults import device_failed, device_ran_out_of_memory, explain
from service.executors.memory import limit_memory
from service.observability.log import configure_logging
from service.schemas import Output, Stage
from service.storage.faults import storage_error_of

if TYPE_CHECKING:
    import torch

    from service.bundle.reader import LoadedBundle

log = structlog.get_logger(__name__)

RUN, CANCEL, FORGET = "run", "cancel", "forget"
"""Messages to the child, each followed by its arguments."""

READY, UNUSABLE = "ready", "unusable"
"""The child's first message: its device computes, with what the device is; or it does not, with a sentence."""

STAGE, DONE, FAILED, FAULT = "stage", "done", "failed", "fault"
"""Messages about a case: progress; the result; code and detail of an error; a sentence about the device, which ends the child."""

LEFT_OUT: Final = ("matplotlib", "pandas", "sklearn", "scipy.signal", "scipy.stats")
"""Libraries that MONAI imports if they are there, and that no case needs (docs/results/speed.md: what they cost)."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What a child is started with.

    Args:
        device: that computes.
        memory_bytes: memory that the child may use, if the device is a CPU.
        engine: engine that runs the networks, as for `service.engines.ready.ready_bundle`.
        state: directory of measurements and prepared networks; None for none.
        warm: root and identity of the bundle that is loaded, and computes a window, before the first case; None for none.
    """

    device: Device
    memory_bytes: int
    engine: str
    state: Path | None
    warm: tuple[Path, str] | None


def serve(pipe: "connection.Connection[Any, Any]", terms: Terms) -> None:
    """Compute what the parent asks for, until it hangs up or the device fails."""
    threading.Thread(target=_die_with_parent, daemon=True).start()
    configure_logging()
    leave_out()
    if terms.device.is_cpu:  # a GPU driver maps more memory than it uses
        limit_memory(terms.memory_bytes)
    try:
        case = _Case(pipe, terms, _Networks(claim(terms.device), terms.engine, terms.state))
        case.warm_up()
    except DeviceUnavailable as error:
        pipe.send((UNUSABLE, error.detail))
        return
    pipe.send((READY, describe(case.networks.device)))
    while True:
        try:
            message, order = pipe.recv()
        except EOFError:
            return
        if message == FORGET:
            case.networks.forget(order)
        if message != RUN:  # a cancellation that came too late: its case has ended
            continue
        outcome = case.outcome(*order)
        pipe.send(outcome)
        if outcome[0] == FAULT:
            return


def leave_out() -> None:
    """Let MONAI find none of the libraries that no case needs; only for a process that computes nothing but cases."""
    sys.modules.update(dict.fromkeys(LEFT_OUT))  # type: ignore[arg-type]  # None: an import of it fails


@dataclass(slots=True)
class _Networks:
    """The bundles that the child keeps in memory."""

    device: "torch.device"
    engine: str
    state: Path | None
    _loaded: "dict[Path, LoadedBundle]" = field(default_factory=dict)

    def load(self, root: Path, identity: str) -> "LoadedBundle":
        """Return the bundle of this identity, from the disk unless it was loaded before."""
        from service.engines.ready import ready_bundle

        bundle = self._loaded.get(root)
        if bundle is None or bundle.description.identity != identity:
            bundle = ready_bundle(root, self.device, self.engine, self.state)
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


@dataclass(frozen=True, slots=True)
class _Case:
    """Computes cases and turns their ends into messages."""

    pipe: "connection.Connection[Any, Any]"
    terms: Terms
    networks: _Networks

    def warm_up(self) -> None:
        """Load the first bundle and compute a window with it.

        Raises:
            DeviceUnavailable: that failed because of the device, or came out not finite. The first case of the bundle meets
                any other error, and reports it.
        """
        from service.pipeline.run import run_case  # noqa: F401 - imported before the first case, which then is not late

        if self.terms.warm is None:
            return
        name = self.terms.device.name
        try:
            finite = _computes_a_window(self.networks.load(*self.terms.warm))
        except Exception as error:
            if device_failed(error) or device_ran_out_of_memory(error):
                msg = f"{name} cannot be used: a window of the first model failed on it ({type(error).__name__})."
                raise DeviceUnavailable(msg) from error
            log.warning("first model not loaded", error=type(error).__name__)
            return
        if not finite:
            msg = f"{name} computes wrongly: a window of the first model has values that are not finite. Do not use it."
            raise DeviceUnavailable(msg)

    def outcome(
        self, scan: Path, root: Path, identity: str, out: Path, outputs: tuple[Output, ...], admission: Admission
    ) -> tuple[str, ...]:
        """Compute a case and return the message about its end."""
        from service.pipeline.run import run_case

        report = partial(_report, self.pipe)
        try:
            bundle = self.networks.load(root, identity)
            name = self.terms.device.name
            result = run_case(scan, bundle, out, report, outputs, device=name, admission=admission)
            return DONE, result.model_dump_json()
        except Exception as error:  # noqa: BLE001 - the wall of the worker loop: one case must not end the others
            return self._failure(error)

    def _failure(self, error: Exception) -> tuple[str, ...]:
        terms = self.terms
        if isinstance(error, OSError) and (fault := storage_error_of(error)) is not None:
            return FAILED, fault.code, fault.detail
        explained = explain(error, self.networks.device, terms.device.name, terms.memory_bytes)
        if isinstance(explained, DeviceUnavailable):
            return FAULT, explained.detail
        if explained is not None:
            return FAILED, explained.code, explained.detail
        # The message may hold what the user sent; the type does not.
        log.error("case failed", error=type(error).__name__)
        return FAILED, CalibrantError.code, f"The computation failed ({type(error).__name__})."


def _computes_a_window(bundle: "LoadedBundle") -> bool:
    """Return whether the network's logits for an example are finite."""
    import torch

    from service.engines.check import example_window

    config = bundle.description.config
    with torch.inference_mode():
        logits = bundle.network(example_window(len(config.channels), config.patch_size, bundle.device))
        return bool(torch.isfinite(logits).all())


def _report(pipe: "connection.Connection[Any, Any]", stage: Stage, done: float) -> None:
    """Report progress to the parent, and end the case if it was cancelled."""
    pipe.send((STAGE, stage, done))
    if pipe.poll() and pipe.recv()[0] == CANCEL:
        msg = "The job was cancelled while it ran."
        raise JobCancelled(msg)


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
