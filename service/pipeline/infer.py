"""Sliding-window inference: the network's input -> logits on the same grid.

Windows overlap. Their logits are averaged with Gaussian weights: a voxel counts most in the windows that centre on it.
"""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import groupby, pairwise, product
from typing import Literal

import torch
from torch import nn
from torch.nn.functional import pad

from service.bundle.schema import ServiceConfig

Progress = Callable[[float], None]
"""Receives the fraction done, in (0, 1]."""

ComputedOn = Literal["device", "device, sums on the CPU", "CPU"]
"""Where a case was computed: wholly on the device; the network there but the sums on the CPU; or wholly on the CPU."""

_SIGMA_PER_WINDOW = 0.125
_LEAST_WEIGHT = 1e-3

_SLAB_PLANES = 32


def _unheard(_: float) -> None:
    pass


def infer(
    network: nn.Module, image: torch.Tensor, config: ServiceConfig, progress: Progress = _unheard
) -> torch.Tensor:
    """Return the logits, (classes, D, H, W) float16, on the device of the network.

    Mask, confidence, summary and card are all computed from these float16 values, which a job also stores: a figure
    computed later is the same figure.

    Args:
        network: in evaluation mode, on the device that computes.
        image: (channels, D, H, W) float32, as `preprocess` returns it.
        config: window size and overlap.
        progress: called after each window.
    """
    return _half_logits(network, image.to(_device_of(network)), config, progress)


def infer_within_memory(
    network: nn.Module, image: torch.Tensor, config: ServiceConfig, progress: Progress = _unheard
) -> tuple[torch.Tensor, ComputedOn]:
    """Return what `infer` returns and where it was computed: fall back one step each time memory runs out.

    A GPU that is too small for the sums over a large scan often still holds a window, so the sums move to the CPU
    first. As a last resort the network moves to the CPU, too, for this case.
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

    The network may be on another device than the image; windows and logits are copied between them. An image smaller
    than the window is padded with 0, the mean intensity after z-scoring.
    """
    return torch.cat([planes for _, planes in _finished_planes(network, image, config, progress)], dim=1)


def _half_logits(network: nn.Module, image: torch.Tensor, config: ServiceConfig, progress: Progress) -> torch.Tensor:
    """Return `sliding_window_logits` as float16 without ever holding all float32 sums in memory."""
    logits = torch.empty((len(config.labels), *image.shape[1:]), dtype=torch.float16, device=image.device)
    for window, planes in _finished_planes(network, image, config, progress):
        logits[:, window] = planes
        del planes  # frees the memory before the next planes are summed
    return logits


@torch.inference_mode()
def _finished_planes(
    network: nn.Module, image: torch.Tensor, config: ServiceConfig, progress: Progress
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield planes of the image along its first axis with their logits, as soon as no further window covers them.

    The sums are only as deep as one window: for 16 classes on 274 x 274 x 166 voxels they need a third of the memory.
    """
    padded, before = _pad_to_window(image, config.patch_size)
    d, h, w = (slice(start, start + n) for start, n in zip(before, image.shape[1:], strict=True))
    weights = gaussian_weights(config.patch_size).to(image.device)
    windows = window_slices(tuple(padded.shape[1:]), config)
    waiting = deque(_slabs(windows))
    device = _device_of(network)
    begun: deque[_Sums] = deque()
    done = 0
    for planes, row in groupby(windows, key=lambda window: window[0]):
        while begun and begun[0].planes.stop <= planes.start:
            yield from begun.popleft().finished(d, h, w)
        while waiting and waiting[0].stop <= planes.stop:
            begun.append(_Sums(waiting.popleft(), len(config.labels), padded))
        for window in row:
            logits = network(padded[(slice(None), *window)][None].to(device))[0].float().to(image.device)
            for sums in begun:
                sums.add(window, logits, weights)
            done += 1
            progress(done / len(windows))
    while begun:
        yield from begun.popleft().finished(d, h, w)


class _Sums:
    """Sums over windows, for a few planes of the image: of weighted logits, and of weights."""

    def __init__(self, planes: slice, classes: int, image: torch.Tensor) -> None:
        """Start with sums of 0.

        Args:
            planes: of the image along its first axis.
            classes: channels of the logits.
            image: (channels, D, H, W); the sums are on its device.
        """
        self.planes = planes
        shape = (planes.stop - planes.start, *image.shape[2:])
        self._total = torch.zeros((classes, *shape), device=image.device)
        self._weight = torch.zeros(shape, device=image.device)

    def add(self, window: tuple[slice, ...], logits: torch.Tensor, weights: torch.Tensor) -> None:
        """Add a window, which must cover all of the planes."""
        inside = slice(self.planes.start - window[0].start, self.planes.stop - window[0].start)
        _, h, w = window
        self._total[:, :, h, w] += logits[:, inside] * weights[inside]
        self._weight[:, h, w] += weights[inside]

    def finished(self, d: slice, h: slice, w: slice) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield the planes inside the unpadded image, which is at d, h, w of the padded one, and their logits."""
        first, last = max(self.planes.start, d.start), min(self.planes.stop, d.stop)
        if first < last:
            inside = slice(first - self.planes.start, last - self.planes.start)
            logits = self._total.div_(self._weight)[:, inside, h, w]
            yield slice(first - d.start, last - d.start), logits


def _slabs(windows: list[tuple[slice, ...]]) -> list[slice]:
    """Split the planes into thin slabs, in order, so that each window covers a slab wholly or not at all.

    The sums of a slab are freed once its logits are written: both are never whole in memory.
    """
    ends = {end for window in windows for end in (window[0].start, window[0].stop)}
    return [slice(*pair) for pair in pairwise(sorted(ends | set(range(0, max(ends), _SLAB_PLANES))))]


def _device_of(network: nn.Module) -> torch.device:
    """Return the device of a network; a network without torch tensors, e.g. of OpenVINO, computes on the CPU."""
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
    return (pad(image, widths) if any(widths) else image), before
