"""Sliding-window inference: the network's input -> logits on the same grid.

Windows overlap. Their logits are averaged with Gaussian weights: a voxel counts most in the windows that centre on it.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby, pairwise, product
from typing import Final

import torch
from torch import nn
from torch.nn.functional import pad

from service.bundle.schema import ServiceConfig
from service.engines.machine import device_of, windows_at_a_time
from service.pipeline.memory import ComputedOn, within_memory

Progress = Callable[[float], None]
"""Receives the fraction done, in (0, 1]."""

_SIGMA_PER_WINDOW = 0.125
_LEAST_WEIGHT = 1e-3

_SLAB_PLANES = 32

_AHEAD: Final = 2
"""Batches of windows that a GPU may be sent before it has computed them: enough to keep it busy."""


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
    device = device_of(network)
    return _half_logits(network, image.to(device), config, progress, windows_at_a_time(device, config.patch_size))


def infer_within_memory(
    network: nn.Module,
    images: Sequence[torch.Tensor],
    config: ServiceConfig,
    on_cpu: Callable[[], nn.Module],
    progress: Progress = _unheard,
) -> tuple[torch.Tensor, ComputedOn]:
    """Return the logits of images of equal shape, (images, C, D, H, W) float16, and where they were computed.

    Each time a GPU's memory runs out, all images are computed with less of it: window by window; with the sums on the
    CPU, because a GPU that is too small for those of a large scan often still holds a window; at last by another network.

    Args:
        network: in evaluation mode, on the device that computes.
        images: each (channels, D, H, W) float32, as `preprocess` returns it.
        config: window size and overlap.
        on_cpu: returns the network that computes on the CPU if nothing else is left.
        progress: called after each window; starts again with each attempt.
    """
    device, cpu = device_of(network), torch.device("cpu")

    def attempt(network: nn.Module, sums: torch.device, at_a_time: int) -> torch.Tensor:
        logits = [
            _half_logits(network, image.to(sums), config, _part_of(progress, n, len(images)), at_a_time)
            for n, image in enumerate(images)
        ]
        # A view for a single image, which may be large: stacking would copy it.
        return logits[0][None] if len(logits) == 1 else torch.stack(logits)

    return within_memory(
        device,
        [
            ("device", lambda: attempt(network, device, windows_at_a_time(device, config.patch_size))),
            ("device", lambda: attempt(network, device, 1)),
            ("device, sums on the CPU", lambda: attempt(network, cpu, 1)),
            ("CPU", lambda: attempt(on_cpu(), cpu, 1)),
        ],
    )


def _part_of(progress: Progress, n: int, parts: int) -> Progress:
    return lambda done: progress((n + done) / parts)


def sliding_window_logits(
    network: nn.Module, image: torch.Tensor, config: ServiceConfig, progress: Progress = _unheard
) -> torch.Tensor:
    """Return the logits of a network over a whole image, (classes, D, H, W) float32 on the image's device.

    The network may be on another device than the image; windows and logits are copied between them. An image smaller
    than the window is padded with 0, the mean intensity after z-scoring.
    """
    at_a_time = windows_at_a_time(device_of(network), config.patch_size)
    return torch.cat([planes for _, planes in _finished_planes(network, image, config, progress, at_a_time)], dim=1)


def _half_logits(
    network: nn.Module, image: torch.Tensor, config: ServiceConfig, progress: Progress, at_a_time: int
) -> torch.Tensor:
    """Return `sliding_window_logits` as float16 without ever holding all float32 sums in memory."""
    logits = torch.empty((len(config.labels), *image.shape[1:]), dtype=torch.float16, device=image.device)
    for window, planes in _finished_planes(network, image, config, progress, at_a_time):
        logits[:, window] = planes
        del planes  # frees the memory before the next planes are summed
    return logits


@torch.inference_mode()
def _finished_planes(
    network: nn.Module, image: torch.Tensor, config: ServiceConfig, progress: Progress, at_a_time: int
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield planes of the image along its first axis with their logits, as soon as no further window covers them.

    The sums are only as deep as one window: for 16 classes on 274 x 274 x 166 voxels they need a third of the memory.
    """
    padded, before = _pad_to_window(image, config.patch_size)
    d, h, w = (slice(start, start + n) for start, n in zip(before, image.shape[1:], strict=True))
    weights = gaussian_weights(config.patch_size).to(image.device)
    windows = window_slices(tuple(padded.shape[1:]), config)
    waiting = deque(_slabs(windows, image.device))
    computed = _logits_of(network, padded, windows, at_a_time)
    pace = _Pace(device_of(network), len(windows), _AHEAD * at_a_time, progress)
    begun: deque[_Sums] = deque()
    for planes, row in groupby(windows, key=lambda window: window[0]):
        while begun and begun[0].planes.stop <= planes.start:
            yield from begun.popleft().finished(d, h, w)
        while waiting and waiting[0].stop <= planes.stop:
            begun.append(_Sums(waiting.popleft(), len(config.labels), padded))
        for window in row:
            logits = next(computed)
            for sums in begun:
                sums.add(window, logits, weights)
            pace.sent_one()
    while begun:
        yield from begun.popleft().finished(d, h, w)
    pace.finish()


def _logits_of(
    network: nn.Module, image: torch.Tensor, windows: list[tuple[slice, ...]], at_a_time: int
) -> Iterator[torch.Tensor]:
    """Yield the logits of each window, (C, *window) float32 on the image's device; so many are computed at a time."""
    device = device_of(network)
    for start in range(0, len(windows), at_a_time):
        cut = [image[(slice(None), *window)] for window in windows[start : start + at_a_time]]
        batch = cut[0][None] if len(cut) == 1 else torch.stack(cut)
        yield from network(batch.to(device)).float().to(image.device)


class _Pace:
    """Reports windows when the device has computed them, and lets it run only so far ahead of the report.

    A GPU returns before it has computed: without this the progress would run ahead, and a case that is cancelled would
    still compute to its end. An event is waited for, not the device.
    """

    def __init__(self, device: torch.device, windows: int, ahead: int, progress: Progress) -> None:
        self._device, self._windows, self._ahead, self._progress = device, windows, ahead, progress
        self._under_way: deque[torch.cuda.Event] = deque()
        self._done = 0

    def sent_one(self) -> None:
        """Note that everything about one more window was sent to the device."""
        if self._device.type == "cuda":
            self._under_way.append(_event_on(self._device))
            self._wait(self._ahead)
        else:
            self._report()

    def finish(self) -> None:
        """Report all windows."""
        self._wait(0)

    def _wait(self, ahead: int) -> None:
        while len(self._under_way) > ahead:
            self._under_way.popleft().synchronize()
            self._report()

    def _report(self) -> None:
        self._done += 1
        self._progress(self._done / self._windows)


def _event_on(device: torch.device) -> torch.cuda.Event:
    """Return an event that comes when the device has done all that it was sent so far."""
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    return event


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


def _slabs(windows: list[tuple[slice, ...]], device: torch.device) -> list[slice]:
    """Split the planes into slabs, in order, so that each window covers a slab wholly or not at all; into thin ones on a CPU.

    The sums of a slab are freed once its logits are written: both are never whole in memory.
    """
    thickest = _SLAB_PLANES if device.type == "cpu" else windows[-1][0].stop
    ends = {end for window in windows for end in (window[0].start, window[0].stop)}
    return [slice(*pair) for pair in pairwise(sorted(ends | set(range(0, max(ends), thickest))))]


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
