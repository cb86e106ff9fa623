"""How far each engine's probabilities lie from float64's, computed by torch on the CPU."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from gpu_day.machine import tensor_float_32
from gpu_day.phantoms import crop
from gpu_day.report import Finding, Report
from service.bundle.engine_kind import REFERENCE, EngineKind
from service.bundle.network import build_network
from service.bundle.reader import load_bundle
from service.bundle.registry import DEFAULT_MODEL, SHIPPED
from service.bundle.schema import Network, ServiceConfig
from service.engines.check import MEAN_TOLERANCE, example_window
from service.engines.machine import available
from service.engines.ready import run_by
from service.pipeline.infer import window_slices
from service.pipeline.preprocess import preprocess
from service.volume import Volume

TF32_TOLERANCE = 1e-3
"""Largest accepted mean difference of probabilities in TF32, whose factors have 10 bits as float16's."""

LEAST_DSC = {"fp32": 0.999, "bf16": 0.97, "fp16": 0.98}
"""Of the trained network, whose structures here are of a few hundred voxels; a random one decides near ties everywhere."""


def compare_engines(report: Report, device: torch.device, *, short: bool) -> None:
    """Add a row for each network, engine and setting of TF32."""
    for subject in _subjects(short=short):
        reference = _probabilities(copy.deepcopy(subject.network).double(), subject.window.double())
        for engine_kind in available(device):
            for tf32 in (False, True) if device.type == "cuda" else (False,):
                setting = f", tf32 {'on' if tf32 else 'off'}" if device.type == "cuda" else ""
                report.row(
                    f"{subject.name}, {engine_kind.name}{setting}",
                    lambda: subject.compared(reference, engine_kind, device, tf32=tf32),
                )


@dataclass(frozen=True, slots=True)
class _Subject:
    """A network and a window of its size, on the CPU."""

    name: str
    network: nn.Module
    window: torch.Tensor
    config: ServiceConfig
    trained: bool

    def compared(self, reference: torch.Tensor, kind: EngineKind, device: torch.device, *, tf32: bool) -> Finding:
        """Compare the probabilities of an engine with float64's."""
        with tensor_float_32(on=tf32):
            prepared = copy.deepcopy(self.network).to(device)
            if kind != REFERENCE:  # whose own check would refuse TF32
                prepared = run_by(kind, prepared, self.config)
            found = _probabilities(prepared, self.window.to(device)).cpu().double()
        half = tf32 and kind == REFERENCE
        tolerance = TF32_TOLERANCE if half else MEAN_TOLERANCE[kind.precision]
        least = LEAST_DSC["fp16" if half else kind.precision] if self.trained else 0.0
        difference, dsc = float((found - reference).abs().mean()), _least_dsc(found, reference)
        text = f"mean |dp| {difference:.2e} (at most {tolerance:g}), DSC {dsc:.4f}"
        return Finding(text, passed=difference <= tolerance and dsc >= least)


def _subjects(*, short: bool) -> Iterator[_Subject]:
    bundle = load_bundle(SHIPPED / DEFAULT_MODEL, torch.device("cpu"))
    config = bundle.description.config
    image, _ = preprocess(Volume(crop()[np.newaxis], np.eye(4), b""), config)
    padding = [
        width
        for n, patch in zip(image.shape[:0:-1], config.patch_size[::-1], strict=True)
        for width in (0, max(patch - n, 0))
    ]
    padded = nn.functional.pad(image, padding)
    window = padded[(slice(None), *window_slices(tuple(padded.shape[1:]), config)[0])]
    yield _Subject("shipped UNet", bundle.network, window[None], config, trained=True)
    if not short:
        arguments = {"spatial_dims": 3, "in_channels": 1, "out_channels": 4, "init_filters": 16}
        config = config.model_copy(update={"patch_size": (96, 96, 96)})
        torch.manual_seed(0)
        network = build_network(Network(name="SegResNet", arguments=arguments)).eval()
        window = example_window(1, config.patch_size, torch.device("cpu"))
        yield _Subject("random SegResNet 96^3", network, window, config, trained=False)


@torch.inference_mode()
def _probabilities(network: nn.Module, window: torch.Tensor) -> torch.Tensor:
    return network(window).softmax(dim=1)


def _least_dsc(found: torch.Tensor, reference: torch.Tensor) -> float:
    """Return the least DSC of the classes that either holds, background left out."""
    masks = [probs.argmax(dim=1) for probs in (found, reference)]
    dsc = []
    for c in range(1, reference.shape[1]):
        a, b = ((mask == c) for mask in masks)
        if a.any() or b.any():
            dsc.append(2 * float((a & b).sum()) / float(a.sum() + b.sum()))
    return min(dsc, default=1.0)
