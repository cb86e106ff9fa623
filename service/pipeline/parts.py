"""Boxes in the patient -> input images for the network, and their logits back onto the voxels of the scan."""

import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from service.bundle.schema import ServiceConfig
from service.pipeline.grid import PartGrid, Shape
from service.pipeline.locate import Points
from service.pipeline.resample import positions, resampled
from service.volume import Volume

_CPU: Final = torch.device("cpu")

_HALF = 0.5
"""A voxel extends half an index to each side of its centre."""


def box_affine(centre_mm: Points, axes: Points, shape: Shape, config: ServiceConfig) -> Points:
    """Return the affine of a box with the bundle's voxel size, (4, 4) voxel index to RAS millimetres.

    Args:
        centre_mm: (3,) RAS.
        axes: (3, 3) columns are the directions of the head's right, anterior and superior, in RAS.
        shape: voxels.
        config: voxel size, and order and directions of the axes.
    """
    directions = np.zeros((3, 3))
    for column, direction in enumerate(config.orientation):
        ras, sign = next(
            (r, 1 - 2 * pair.index(direction)) for r, pair in enumerate(("RL", "AP", "SI")) if direction in pair
        )
        directions[:, column] = sign * axes[:, ras]
    affine = np.eye(4)
    affine[:3, :3] = directions * np.array(config.spacing_mm)
    affine[:3, 3] = centre_mm - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


def voxels_of(size_mm: tuple[float, float, float], config: ServiceConfig) -> Shape:
    """Return the shape of a box in voxels of the bundle, in the order of the bundle's axes.

    Args:
        size_mm: edges of the box along right-left, anterior-posterior and inferior-superior.
        config: voxel size and orientation.
    """
    edge = {letter: mm for pair, mm in zip(("RL", "AP", "SI"), size_mm, strict=True) for letter in pair}
    d, h, w = (max(round(edge[axis] / mm), 1) for axis, mm in zip(config.orientation, config.spacing_mm, strict=True))
    return d, h, w


def crop(volume: Volume, affine: Points, shape: Shape, device: torch.device = _CPU) -> tuple[Volume, float]:
    """Crop a box out of a scan by trilinear interpolation; also return the fraction of the box inside the scan.

    Outside the scan its nearest voxel is repeated. A voxel is padding where most of what it is interpolated from is.

    Args:
        volume: the scan.
        affine: (4, 4) voxel index of the box to RAS millimetres.
        shape: voxels of the box.
        device: that interpolates.
    """
    to_index = np.linalg.inv(volume.affine) @ affine
    corners = (
        to_index[:3, :3] @ (np.indices((2, 2, 2)).reshape(3, -1) * (np.array(shape)[:, None] - 1)) + to_index[:3, 3:]
    )
    n = np.array(volume.shape)
    low = np.clip(np.floor(corners.min(axis=1)).astype(int), 0, n - 1)
    high = np.clip(np.ceil(corners.max(axis=1)).astype(int) + 1, low + 1, n)
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    near = volume.array_CDHW[(slice(None), *box)]
    shifted = to_index.copy()
    shifted[:3, 3] -= low
    index = positions(to_index, shape, device)
    last = torch.from_numpy(n - _HALF).to(device, non_blocking=True)[:, None]
    inside = ((index >= -_HALF) & (index <= last)).all(dim=0).sum()
    image = torch.from_numpy(np.array(near, np.float32, order="C"))[None].to(device)
    array = resampled(image, shifted, shape, "border")[0].cpu().numpy()
    nothing = None if volume.padding is None or not volume.padding[box].any() else volume.padding[box]
    if nothing is not None:
        share = torch.from_numpy(np.array(nothing, np.float32, order="C"))[None, None].to(device)
        nothing = resampled(share, shifted, shape, "border")[0, 0].cpu().numpy() > _HALF
    cropped = Volume(array, affine, volume.header, volume.warnings, padding=nothing)
    return cropped, int(inside) / math.prod(shape)


def part_probability_slabs(
    logits: Iterable[torch.Tensor], parts: tuple[PartGrid, ...], shape: Shape, config: ServiceConfig, values: int
) -> Iterator[tuple[slice, npt.NDArray[np.float32]]]:
    """Yield the calibrated probabilities of a scan of which only parts were segmented, slab by slab.

    Outside of the boxes the background has probability 1. Where boxes overlap, which those of two sides do not, the voxel
    belongs to the part that is listed first. Yields as `service.pipeline.predict.probability_slabs`.

    Args:
        logits: (C, D, H, W) float16 of each part.
        parts: the grid of each part.
        shape: of the scan in the network's axis order.
        config: of the result: the labels of all parts, and the temperature of each class.
        values: maximum number of values in a slab of more than one plane.
    """
    planes, height, width = shape
    classes = len(config.labels)
    thickness = max(1, values // (classes * height * width))
    part_probs = part_probabilities(logits, parts, shape, config)
    for start in range(0, planes, thickness):
        window = slice(start, min(start + thickness, planes))
        probs = np.zeros((classes, window.stop - start, height, width), np.float32)
        probs[0] = 1
        for channels, index, p_CN in reversed(part_probs):
            in_slab = (index[0] >= window.start) & (index[0] < window.stop)
            d, h, w = index[:, in_slab]
            probs[:, d - start, h, w] = 0
            for channel, p in zip(channels, p_CN.cpu().numpy(), strict=True):
                probs[channel, d - start, h, w] = p[in_slab]
        yield window, probs


class PartProbabilities(NamedTuple):
    """The calibrated probabilities of the scan's voxels inside a part.

    Args:
        channels: class of the result for each of the C channels of the network.
        voxels: (3, N) their indices in the scan, in the network's axis order.
        p_CN: (C, N) float32, on the device of the logits.
    """

    channels: tuple[int, ...]
    voxels: npt.NDArray[np.int64]
    p_CN: torch.Tensor


def part_probabilities(
    logits: Iterable[torch.Tensor], parts: tuple[PartGrid, ...], shape: Shape, config: ServiceConfig
) -> list[PartProbabilities]:
    """Return the probabilities inside each part at once: a part is small, and slabs of it would round differently.

    Args:
        logits: (C, D, H, W) float16 of each part.
        parts: the grid of each part.
        shape: of the scan in the network's axis order.
        config: of the result: the temperature of each class.
    """
    temperature = torch.tensor(config.temperature)

    def inside(part: PartGrid, part_logits: torch.Tensor) -> PartProbabilities:
        index, at = _inside(part, shape)
        of_channels = temperature[list(part.channels)].to(part_logits.device, non_blocking=True)
        scaled = trilinear(part_logits, at) / of_channels[:, None]
        return PartProbabilities(part.channels, index, scaled.softmax(dim=0))

    return [inside(part, part_logits) for part, part_logits in zip(parts, logits, strict=True)]


def trilinear(array_CDHW: torch.Tensor, at: npt.NDArray[np.float64]) -> torch.Tensor:
    """Interpolate an array at fractional voxel indices, (C, N) float32; a value does not depend on the others asked for.

    Args:
        array_CDHW: any floating type, on any device.
        at: (3, N) indices; beyond the edge the value at the edge is repeated.
    """
    shape = array_CDHW.shape[1:]
    at_edge = torch.from_numpy(np.clip(at, 0, np.array(shape)[:, None] - 1)).to(array_CDHW.device)
    below = torch.stack([axis.floor().long().clamp_(max=max(n - 2, 0)) for axis, n in zip(at_edge, shape, strict=True)])
    fraction = (at_edge - below).float()
    flat = array_CDHW.reshape(len(array_CDHW), -1)
    total = torch.zeros((len(array_CDHW), at.shape[1]), device=array_CDHW.device)
    for corner in itertools.product((0, 1), repeat=3):
        places, weight = torch.zeros_like(below[0]), torch.ones_like(fraction[0])
        for axis, upper in enumerate(corner):
            places = places * shape[axis] + (below[axis] + upper).clamp_(max=shape[axis] - 1)
            weight = weight * (fraction[axis] if upper else 1 - fraction[axis])
        total += flat[:, places].float() * weight
    return total


def _inside(part: PartGrid, shape: Shape) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Return the (3, N) indices of the scan's voxels that lie inside a part, and their (3, N) indices in the part."""
    n = np.array(part.shape)
    corners = np.indices((2, 2, 2)).reshape(3, -1) * n[:, None] - _HALF
    to_scan = np.linalg.inv(part.to_part)
    scan_corners = to_scan[:3, :3] @ corners + to_scan[:3, 3:]
    low = np.maximum(np.floor(scan_corners.min(axis=1)).astype(int), 0)
    high = np.minimum(np.ceil(scan_corners.max(axis=1)).astype(int) + 1, shape)
    edges = np.maximum(high - low, 0)
    index = np.indices(tuple(edges)).reshape(3, -1) + low[:, None]
    at = part.to_part[:3, :3] @ index + part.to_part[:3, 3:]
    inside = ((at >= -_HALF) & (at < n[:, None] - _HALF)).all(axis=0)
    return index[:, inside], at[:, inside]
