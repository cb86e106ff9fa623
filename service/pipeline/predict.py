"""Logits -> calibrated probabilities, mask and confidence on the scan's own grid."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch

from service.bundle.schema import ServiceConfig
from service.calibration.histogram import BINS, ReliabilityHistogram
from service.engines.machine import to_host
from service.errors import InvalidProbabilities
from service.pipeline.grid import Grid, Shape
from service.pipeline.parts import part_probabilities, part_probability_slabs
from service.pipeline.preprocess import SLAB_VALUES, to_scan_axes, to_scan_slabs


@dataclass(frozen=True, slots=True, eq=False)
class Segmentation:
    """Mask and confidence of one case.

    Args:
        mask: (D, H, W) uint8, label values of the bundle.
        confidence: (D, H, W) float32 in [1/C, 1], the calibrated probability of the mask's class at each voxel.
    """

    mask: npt.NDArray[np.uint8]
    confidence: npt.NDArray[np.float32]


def probability_slabs(
    logits: torch.Tensor, grid: Grid, config: ServiceConfig
) -> Iterator[tuple[slice, npt.NDArray[np.float32]]]:
    """Yield the calibrated probabilities of the scan's voxels slab by slab, (C, planes, H, W), summing to 1 over C.

    They are never whole in memory: 16 classes of 512^3 voxels would take 8 GiB. Axes are those of `to_scan_slabs`.
    Logits are interpolated rather than probabilities, whose interpolation would blur the confidence at edges.

    Args:
        logits: (C, D, H, W) float16 on the network's grid; for several parts (parts, C, D, H, W).
        grid: leads back to the scan's grid.
        config: holds the temperature of each class.
    """
    if grid.parts:
        yield from part_probability_slabs(logits.cpu(), grid.parts, _three(grid.oriented_shape), config, SLAB_VALUES)
        return
    for window, probs in _slabs(logits, grid, config):
        yield window, probs.cpu().numpy()


def _slabs(logits: torch.Tensor, grid: Grid, config: ServiceConfig) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield `probability_slabs` of a scan that was segmented whole as tensors on the device of the logits."""
    temperature = torch.tensor(config.temperature).to(logits.device, non_blocking=True).view(-1, 1, 1, 1)
    for window, slab in to_scan_slabs(logits, grid):
        yield window, slab.div_(temperature).softmax(dim=0)


def probabilities(logits: torch.Tensor, grid: Grid, config: ServiceConfig) -> npt.NDArray[np.float32]:
    """Return all calibrated probabilities at once, (C, D, H, W) float32 on the scan's grid in the axes of its file."""
    whole = np.concatenate([slab for _, slab in probability_slabs(logits, grid, config)], axis=1)
    return np.stack([to_scan_axes(channel, grid) for channel in whole])


def segment(logits: torch.Tensor, grid: Grid, config: ServiceConfig) -> Segmentation:
    """Return the most probable label and its probability at each voxel; the first listed wins a tie.

    Args:
        logits: (C, D, H, W) float16 on the network's grid; for several parts (parts, C, D, H, W).
        grid: leads back to the scan's grid.
        config: holds label value and temperature of each class.
    """
    values = [label.value for label in config.labels]
    if grid.parts:
        return _segment_parts(logits, grid, config)
    if logits.device.type != "cpu":
        return segment_on_device(logits, grid, config)
    mask, confidence, views = _empty(grid)
    for window, probs in _slabs(logits, grid, config):
        for view, slab in zip(views, most_probable(probs, values), strict=True):
            view[window] = slab.numpy()
    return Segmentation(mask, confidence)


def without_padding(segmentation: Segmentation, padding: npt.NDArray[np.bool_] | None, background: int) -> Segmentation:
    """Return the segmentation with declared padding as certain background, changed in place.

    Args:
        segmentation: of the scan.
        padding: (D, H, W) voxels that the scan declares to show nothing; None if there are none.
        background: its label value.
    """
    if padding is not None:
        segmentation.mask[padding] = background
        segmentation.confidence[padding] = 1
    return segmentation


def _empty(
    grid: Grid,
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32], list[npt.NDArray[np.uint8] | npt.NDArray[np.float32]]]:
    """Return mask and confidence in the file's axes, to be filled through views in the network's: nothing is reoriented."""
    mask, confidence = np.empty(grid.scan_shape, np.uint8, order="F"), np.empty(grid.scan_shape, np.float32, order="F")
    views = [nib.orientations.apply_orientation(array, grid.orientation) for array in (mask, confidence)]
    return mask, confidence, views


def _segment_parts(logits: torch.Tensor, grid: Grid, config: ServiceConfig) -> Segmentation:
    """Return what `segment` returns for located parts: only the voxels inside them are computed."""
    mask, confidence, views = _empty(grid)
    mask.fill(config.labels[0].value)
    confidence.fill(1)
    within = part_probabilities(logits, grid.parts, _three(grid.oriented_shape), config)
    for channels, voxels, p_CN in reversed(within):
        found = most_probable(p_CN, [config.labels[channel].value for channel in channels])
        for view, of_part in zip(views, found, strict=True):
            view[tuple(voxels)] = of_part.cpu().numpy()
    return Segmentation(mask, confidence)


def segment_on_device(logits: torch.Tensor, grid: Grid, config: ServiceConfig) -> Segmentation:
    """Return what `segment` returns for a scan that was segmented whole, reoriented where the logits are.

    Mask and confidence come back in two copies, whatever the number of slabs.

    Args:
        logits: (C, D, H, W) float16 on the network's grid.
        grid: leads back to the scan's grid.
        config: holds label value and temperature of each class.
    """
    reversed_shape = grid.scan_shape[::-1]  # the file's axes, in its order of memory
    arrays = [
        torch.empty(reversed_shape, dtype=dtype, device=logits.device).permute(2, 1, 0)
        for dtype in (torch.uint8, torch.float32)
    ]
    network_axis = [int(axis) for axis in grid.orientation[:, 0]]
    flipped = [axis for axis, flip in enumerate(grid.orientation[:, 1]) if flip < 0]
    across = network_axis.index(0)
    planes = grid.oriented_shape[0]
    for window, probs in _slabs(logits, grid, config):
        there = slice(planes - window.stop, planes - window.start) if across in flipped else window
        for array, slab in zip(arrays, most_probable(probs, [label.value for label in config.labels]), strict=True):
            array.narrow(across, there.start, there.stop - there.start).copy_(slab.permute(network_axis).flip(flipped))
    mask, confidence = (to_host(array).numpy() for array in arrays)
    return Segmentation(mask, confidence)


def _three(shape: tuple[int, ...]) -> Shape:
    d, h, w = shape
    return d, h, w


def most_probable(probs: torch.Tensor, values: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the label value of the most probable class, uint8, and its probability; the first listed wins a tie.

    Args:
        probs: (C, ...) probabilities.
        values: label value of each class.
    """
    # argmax is several times slower than comparisons; bool-valued comparisons are slower than float-valued ones.
    highest = probs.amax(dim=0)
    value, lower, none_yet = torch.full_like(highest, values[0]), torch.empty_like(highest), torch.ones_like(highest)
    for channel, step in zip(probs, np.diff(values), strict=False):
        none_yet *= torch.ne(channel, highest, out=lower)
        value.add_(none_yet, alpha=int(step))
    return value.to(torch.uint8), highest


def reliability_histogram(
    probs: torch.Tensor, labels: torch.Tensor, structures: Sequence[Sequence[int]] | None = None
) -> ReliabilityHistogram:
    """Return the reliability histogram of tensors on any device, as `ReliabilityHistogram.from_probabilities` does.

    Counts are integers and sums float64: results on different devices differ only by the order of summation.

    Args:
        probs: (C, ...) probabilities in [0, 1].
        labels: (...) integers 0 .. C-1 on the same device.
        structures: classes whose probabilities are summed for each row; by default each class is a row.

    Raises:
        InvalidProbabilities: NaN or a value outside [0, 1], a label outside 0 .. C-1, or shapes that disagree.
    """
    probs = probs.float()
    _reject_invalid(probs, labels)
    probs, labels = probs.flatten(1), labels.flatten()
    rows = structures or [(c,) for c in range(len(probs))]
    count, sum_p, sum_y = [], [], []
    for classes in rows:
        p = probs[list(classes)].sum(dim=0).clamp_(max=1)
        bins = (p * BINS).ceil_().sub_(1).clamp_(0, BINS - 1).long()
        count.append(torch.bincount(bins, minlength=BINS))
        sum_p.append(torch.bincount(bins, weights=p.double(), minlength=BINS).double())
        belongs = torch.isin(labels, torch.tensor(classes, device=labels.device))
        sum_y.append(torch.bincount(bins[belongs], minlength=BINS))
    n, p_sum, y_sum = (torch.stack(sums).cpu().numpy() for sums in (count, sum_p, sum_y))
    return ReliabilityHistogram(n, p_sum, y_sum)


def _reject_invalid(probs: torch.Tensor, labels: torch.Tensor) -> None:
    if probs.shape[1:] != labels.shape:
        msg = f"Probabilities of {probs.shape[1:].numel()} voxels do not belong to labels of {labels.numel()}."
        raise InvalidProbabilities(msg)
    if labels.is_floating_point() or labels.dtype == torch.bool:
        msg = f"Labels are {labels.dtype}; expected integers, one class per voxel."
        raise InvalidProbabilities(msg)
    # Written as "not all in range" to catch NaN, too: its comparisons are false.
    if probs.numel() and not bool(((probs >= 0) & (probs <= 1)).all()):
        msg = f"Probabilities span {float(probs.min())} to {float(probs.max())}; expected values in [0, 1]. Apply softmax first."
        raise InvalidProbabilities(msg)
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < len(probs):
        msg = f"Labels span {int(labels.min())} to {int(labels.max())}; expected 0 to {len(probs) - 1}."
        raise InvalidProbabilities(msg)
