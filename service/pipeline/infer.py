"""Sliding-window inference: the network's input -> logits on the same grid.

Windows overlap; their logits are averaged with Gaussian weights, so that a voxel counts most where it lay central.
"""

from collections.abc import Callable
from contextlib import suppress
from itertools import product
from typing import Literal

import torch
from torch import nn
from torch.nn.functional import pad

from service.bundle.schema import ServiceConfig

Progress = Callable[[float], None]
"""Receives the fraction done, in (0, 1]."""

Placement = Literal["device", "device, sums on the CPU", "CPU"]
"""Where a case was computed: wholly on the device, its network only, or nothing."""

_SIGMA_PER_WINDOW = 0.125
_LEAST_WEIGHT = 1e-3


def _unheard(_: float) -> None:
    pass


def infer(
    network: nn.Module, image: torch.Tensor, config: ServiceConfig, progress: Progress = _unheard
) -> torch.Tensor:
    """Return the logits, (classes, D, H, W) float16 on the CPU.

    Everything downstream - mask, confidence, summary, card - is computed from these float16 values, which are also
    what a job stores, so that a figure computed later is the same figure.

    Args:
        network: in evaluation mode, on the device that is to compute.
        image: (channels, D, H, W) float32, as `preprocess` returns it.
        config: window size and overlap.
        progress: called after each window.
    """
    device = next(network.parameters()).device
    return sliding_window_logits(network, image.to(device), config, progress).half().cpu()


def infer_within_memory(
    network: nn.Module, image: torch.Tensor, config: ServiceConfig, progress: Progress = _unheard
) -> tuple[torch.Tensor, Placement]:
    """Return what `infer` returns, and where it was computed: each time the memory runs out one step further down.

    A GPU that is too small for the sums over a large scan often still holds a window; then only the sums move. At
    last the network itself moves to the CPU for this case.
    """
    device = next(network.parameters()).device
    if device.type == "cpu":
        return infer(network, image, config, progress), "device"
    with suppress(torch.OutOfMemoryError):
        return infer(network, image, config, progress), "device"
    torch.cuda.empty_cache()
    with suppress(torch.OutOfMemoryError):
        return sliding_window_logits(network, image.cpu(), config, progress).half(), "device, sums on the CPU"
    torch.cuda.empty_cache()
    try:
        return sliding_window_logits(network.cpu(), image.cpu(), config, progress).half(), "CPU"
    finally:
        network.to(device)


@torch.inference_mode()
def sliding_window_logits(
    network: nn.Module, image: torch.Tensor, config: ServiceConfig, progress: Progress = _unheard
) -> torch.Tensor:
    """Return the logits of a network over a whole image, (classes, D, H, W) float32 on the image's device.

    The network may be on another device: then each window goes there and its logits come back. An image smaller than the window is padded with 0, the mean intensity after z-scoring.
    """
    padded, before = _pad_to_window(image, config.patch_size)
    weights = gaussian_weights(config.patch_size).to(image.device)
    total = torch.zeros((len(config.labels), *padded.shape[1:]), device=image.device)
    weight = torch.zeros(padded.shape[1:], device=image.device)
    windows = window_slices(tuple(padded.shape[1:]), config)
    device = next((parameter.device for parameter in network.parameters()), image.device)
    for done, window in enumerate(windows, start=1):
        logits = network(padded[(slice(None), *window)][None].to(device))[0].float().to(image.device)
        total[(slice(None), *window)] += logits * weights
        weight[window] += weights
        progress(done / len(windows))
    total /= weight
    inside = tuple(slice(start, start + n) for start, n in zip(before, image.shape[1:], strict=True))
    return total[(slice(None), *inside)]


def window_slices(shape: tuple[int, ...], config: ServiceConfig) -> list[tuple[slice, ...]]:
    """Return the windows that cover `shape`: steps of ``patch * (1 - overlap)``, the last one flush with the end."""
    starts = []
    for n, patch in zip(shape, config.patch_size, strict=True):
        step = max(int(patch * (1 - config.overlap)), 1)
        starts.append(sorted({min(start, n - patch) for start in range(0, n - patch + step, step)}))
    return [tuple(slice(s, s + p) for s, p in zip(start, config.patch_size, strict=True)) for start in product(*starts)]


def gaussian_weights(patch_size: tuple[int, ...]) -> torch.Tensor:
    """Return the weight of each voxel of a window, (*patch_size) in [1e-3, 1]: sigma is an eighth of the window."""
    weights = torch.ones(())
    for n in patch_size:
        x = torch.arange(n, dtype=torch.float32) - (n - 1) / 2
        weights = weights[..., None] * torch.exp(-(x**2) / (2 * (_SIGMA_PER_WINDOW * n) ** 2))
    return weights.clamp(min=_LEAST_WEIGHT)


def _pad_to_window(image: torch.Tensor, patch_size: tuple[int, ...]) -> tuple[torch.Tensor, list[int]]:
    missing = [max(patch - n, 0) for patch, n in zip(patch_size, image.shape[1:], strict=True)]
    before = [n // 2 for n in missing]
    widths = [w for n, b in zip(reversed(missing), reversed(before), strict=True) for w in (b, n - b)]
    return pad(image, widths), before
