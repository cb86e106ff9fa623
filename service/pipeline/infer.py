"""Sliding-window inference: the network's input -> logits on the same grid.

Windows overlap; their logits are averaged with Gaussian weights, so that a voxel counts most where it lay central.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import groupby, product
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
    """Return the logits, (classes, D, H, W) float16, on the device of the network.

    Everything downstream - mask, confidence, summary, card - is computed from these float16 values, which are also
    what a job stores, so that a figure computed later is the same figure.

    Args:
        network: in evaluation mode, on the device that is to compute.
        image: (channels, D, H, W) float32, as `preprocess` returns it.
        config: window size and overlap.
        progress: called after each window.
    """
    return _half_logits(network, image.to(_device_of(network)), config, progress)


def infer_within_memory(
    network: nn.Module, image: torch.Tensor, config: ServiceConfig, progress: Progress = _unheard
) -> tuple[torch.Tensor, Placement]:
    """Return what `infer` returns, and where it was computed: each time the memory runs out one step further down.

    A GPU that is too small for the sums over a large scan often still holds a window; then only the sums move. At
    last the network itself moves to the CPU for this case.
    """
    device = _device_of(network)
    if device.type == "cpu":
        return infer(network, image, config, progress), "device"
    with suppress(torch.OutOfMemoryError):
        return infer(network, image, config, progress), "device"
    torch.cuda.empty_cache()
    with suppress(torch.OutOfMemoryError):
        return _half_logits(network, image.cpu(), config, progress), "device, sums on the CPU"
    torch.cuda.empty_cache()
    try:
        return _half_logits(network.cpu(), image.cpu(), config, progress), "CPU"
    finally:
        network.to(device)


def sliding_window_logits(
    network: nn.Module, image: torch.Tensor, config: ServiceConfig, progress: Progress = _unheard
) -> torch.Tensor:
    """Return the logits of a network over a whole image, (classes, D, H, W) float32 on the image's device.

    The network may be on another device: then each window goes there and its logits come back. An image smaller than
    the window is padded with 0, the mean intensity after z-scoring.
    """
    return torch.cat([planes.clone() for _, planes in _finished_planes(network, image, config, progress)], dim=1)


def _half_logits(network: nn.Module, image: torch.Tensor, config: ServiceConfig, progress: Progress) -> torch.Tensor:
    """Return `sliding_window_logits` as float16, of which the float32 sums are never whole in memory."""
    logits = torch.empty((len(config.labels), *image.shape[1:]), dtype=torch.float16, device=image.device)
    for window, planes in _finished_planes(network, image, config, progress):
        logits[:, window] = planes
    return logits


@torch.inference_mode()
def _finished_planes(
    network: nn.Module, image: torch.Tensor, config: ServiceConfig, progress: Progress
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield planes of the image along its first axis with their logits, as soon as no window will touch them any more.

    The sums are as deep as one window: of 16 classes on 274 x 274 x 166 voxels a third of what the whole would take.
    What is yielded is overwritten afterwards.
    """
    padded, before = _pad_to_window(image, config.patch_size)
    d, h, w = (slice(start, start + n) for start, n in zip(before, image.shape[1:], strict=True))
    weights = gaussian_weights(config.patch_size).to(image.device)
    depth = config.patch_size[0]
    total = torch.zeros((len(config.labels), depth, *padded.shape[2:]), device=image.device)
    weight = torch.zeros(total.shape[1:], device=image.device)
    windows = window_slices(tuple(padded.shape[1:]), config)
    device = _device_of(network)
    first = done = 0
    for start, row in groupby(windows, key=lambda window: window[0].start):
        if passed := start - first:
            yield slice(first, start), total[:, :passed].div_(weight[:passed])[:, :, h, w]
            for sums in (total, weight[None]):
                sums[:, : depth - passed] = sums[:, passed:].clone()
                sums[:, depth - passed :] = 0
            first = start
        for window in row:
            logits = network(padded[(slice(None), *window)][None].to(device))[0].float().to(image.device)
            total[(slice(None), slice(None), *window[1:])] += logits * weights
            weight[(slice(None), *window[1:])] += weights
            done += 1
            progress(done / len(windows))
    # An image that was padded along its first axis has one row of windows, all others end with their last one.
    total.div_(weight)
    yield slice(first, first + min(depth, image.shape[1])), total[:, d if not first else slice(None), h, w]


def _device_of(network: nn.Module) -> torch.device:
    """Return where a network computes; one that holds no tensors of torch does so on the CPU."""
    return next((parameter.device for parameter in network.parameters()), torch.device("cpu"))


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
