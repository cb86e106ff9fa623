"""Load a bundle and select the fastest engine that its card covers."""

import copy
from dataclasses import replace
from pathlib import Path

import structlog
import torch
from torch import nn

from service.bundle.card import CPU
from service.bundle.engine_kind import AUTO, ENGINE_KINDS, REFERENCE, EngineKind
from service.bundle.overlay import measurements_of
from service.bundle.reader import LoadedBundle, load_bundle
from service.bundle.schema import ServiceConfig
from service.engines.check import check, example_window
from service.engines.machine import available, device_kind, device_of, windows_at_a_time
from service.engines.torch_cast import cast
from service.errors import BundleUnsupported, EngineDisagrees

log = structlog.get_logger(__name__)

FOLDER = "engines"
"""Folder of the state directory for prepared networks, by the bundle's SHA-256."""


def ready_bundle(root: Path, device: torch.device, engine: str = AUTO, state: Path | None = None) -> LoadedBundle:
    """Load the bundle at `root` with the requested engine.

    Args:
        root: folder of the bundle.
        device: that computes.
        engine: name of an engine kind. By default the fastest that the device has and that was measured on its kind of
            device, on the card or on this machine; if there is none, the reference. Without a measurement `run_case`
            refuses it on a CPU, and withdraws the statement on a GPU.
        state: directory for measurements and prepared networks; None for none.

    Raises:
        BundleError: as `load_bundle`; or the requested engine is not available, was not measured, or does not compute
            the network's function.
    """
    bundle = load_bundle(root, device)
    kind = device_kind(device)
    measured = measurements_of(bundle.description, state, kind)
    cache = None if state is None else state / FOLDER / bundle.description.sha256
    config = bundle.description.config
    for engine_kind in _candidates(engine, available(device)):
        if engine_kind not in measured:
            if engine == AUTO or (engine_kind == REFERENCE and kind != CPU):
                continue
            raise BundleUnsupported(_not_measured(engine_kind, kind))
        try:
            network = run_by(engine_kind, bundle.network, config, cache)
        except EngineDisagrees:
            if engine != AUTO:
                raise
            log.warning("engine left out: its output differs from the network's", engine=engine_kind.name)
            continue
        return replace(bundle, network=network, engine_kind=engine_kind, measurement=measured[engine_kind])
    if kind != CPU:
        run_by(REFERENCE, bundle.network, config)
        log.warning("statements are withdrawn: nothing was measured on this kind of device", device=kind)
    return bundle


def run_by(engine_kind: EngineKind, network: nn.Module, config: ServiceConfig, cache: Path | None = None) -> nn.Module:
    """Return the network run by an engine: the same mapping from windows to logits, checked.

    Args:
        engine_kind: that the network's device has.
        network: in evaluation mode, in torch, float32.
        config: holds the window size.
        cache: folder in which engines may store the prepared network.

    Raises:
        EngineDisagrees: the engine does not compute the network's function.
    """
    device = device_of(network)
    on_cpu = device_kind(device) == CPU
    if engine_kind == REFERENCE and on_cpu:
        return network
    window = example_window(len(config.channels), config.patch_size, device)
    prepared = network
    if engine_kind.engine == "openvino":
        from service.engines.openvino_ir import compiled  # an optional package

        prepared = compiled(network, window, engine_kind.precision, cache)
    elif engine_kind != REFERENCE:
        copies = windows_at_a_time(device, config.patch_size)
        prepared = cast(network, window.expand(copies, -1, -1, -1, -1), engine_kind.precision)
    # What a GPU computes is compared with the CPU: its own float32 may be what is wrong.
    reference = network if on_cpu else copy.deepcopy(network).cpu()
    check(prepared, reference, window, engine_kind.precision)
    return prepared


def _candidates(engine: str, installed: list[EngineKind]) -> list[EngineKind]:
    if engine == AUTO:
        return installed
    if engine not in ENGINE_KINDS or ENGINE_KINDS[engine] not in installed:
        names = ", ".join(engine_kind.name for engine_kind in installed)
        msg = f"This machine lacks the requested engine; it has {names}. Set CALIBRANT_ENGINE to one of these, or to {AUTO}."
        raise BundleUnsupported(msg)
    return [ENGINE_KINDS[engine]]


def _not_measured(engine_kind: EngineKind, device: str) -> str:
    where, option = ("", "") if device == CPU else (f" on {device}", f" --device {device.partition('-')[0]}")
    return (
        f"The calibration card has no measurement of {engine_kind.engine} at {engine_kind.precision}{where}: nothing could be said about "
        f"its results. Measure it here: calibrant verify-engine BUNDLE --recipe RECIPE --data DIR --engine {engine_kind.name}{option}."
    )
