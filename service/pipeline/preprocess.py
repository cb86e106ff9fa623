"""Volume -> the network's grid and intensities, as the bundle declares them; and the way back to the scan's own grid.

Training and serving both call this module: there is no second preprocessing.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, TypeVar

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import interpolate

from service.bundle.schema import IntensityStep, ServiceConfig, Window, ZScore
from service.errors import ConstantVolume, InvalidRequest, VolumeTooLarge
from service.pipeline.decode import MAX_VOXELS
from service.pipeline.parts import PartGrid
from service.volume import Volume

SLAB_VALUES: Final = 1 << 21
"""Numbers that the way back to the scan's grid holds at a time: 8 MiB of float32, which a processor's cache holds."""

_FLOAT32_COUNTS = 1 << 24
_PIECE = 1 << 20
"""Numbers that are normalised at a time, as float64."""

_Scalar = TypeVar("_Scalar", bound=np.generic)


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """How a scan's grid became the network's, so that the network's output can be brought back.

    Args:
        scan_shape: voxels along i, j, k of the scan as it came.
        orientation: (3, 2) nibabel orientation: network axis and flip of each scan axis.
        oriented_shape: the scan's shape in the network's axis order.
        network_shape: voxels after resampling.
        parts: where a locator found the anatomy, the network's grid on each part; none where it saw the scan as it is.
    """

    scan_shape: tuple[int, ...]
    orientation: npt.NDArray[np.float64]
    oriented_shape: tuple[int, ...]
    network_shape: tuple[int, ...]
    parts: tuple[PartGrid, ...] = ()

    @classmethod
    def of(cls, volume: Volume, config: ServiceConfig) -> "Grid":
        """Return the grid on which the bundle's network sees this volume.

        Resampling keeps the centres of the first and the last voxel in place, so the spacing reached is
        ``(n_in - 1) / (n_out - 1)`` times the scan's, the nearest to the bundle's that this allows.
        """
        found = nib.orientations.io_orientation(volume.affine)
        wanted = nib.orientations.axcodes2ornt(tuple(config.orientation))
        orientation = nib.orientations.ornt_transform(found, wanted)
        axis_of = np.argsort(orientation[:, 0])
        shape = tuple(volume.shape[axis] for axis in axis_of)
        spacing = volume.spacing_mm[axis_of]
        resampled = (
            round((n - 1) * mm / target) + 1 for n, mm, target in zip(shape, spacing, config.spacing_mm, strict=True)
        )
        return cls(volume.shape, orientation, shape, tuple(max(n, 1) for n in resampled))


def preprocess(volume: Volume, config: ServiceConfig) -> tuple[torch.Tensor, Grid]:
    """Return the network's input, (C, D, H, W) float32, and the grid that leads back.

    Raises:
        InvalidRequest: another number of channels than the bundle takes.
        ConstantVolume: nothing to normalise.
    """
    if len(volume.array_CDHW) != len(config.channels):
        msg = f"The scan has {len(volume.array_CDHW)} channels; the model takes {len(config.channels)}."
        raise InvalidRequest(msg)
    low, high = (
        np.array([float(channel_extreme) for channel_extreme in extremes])
        for extremes in zip(*((channel.min(), channel.max()) for channel in volume.array_CDHW), strict=True)
    )
    if (low == high).any():
        msg = "Every voxel has the same intensity: there is nothing to segment. Check that the right file was sent."
        raise ConstantVolume(msg)
    grid = Grid.of(volume, config)
    if math.prod(grid.network_shape) > MAX_VOXELS:
        msg = f"At the model's voxel size the scan would have more than {MAX_VOXELS} voxels. Crop it, or check its voxel size."
        raise VolumeTooLarge(msg)
    # float32 counts to 2^24: larger intensities would lose the differences that z-scoring brings out.
    exact = max(-low.min(), high.max()) <= _FLOAT32_COUNTS
    image = to_network_grid(volume.array_CDHW.astype(np.float32 if exact else np.float64), grid)
    for step in config.intensity:
        for channel in image:
            _normalise(channel, step)
        image = image.float()
    return image, grid


def to_network_grid(array_CDHW: npt.NDArray[np.floating], grid: Grid) -> torch.Tensor:
    """Return intensities of the scan's grid on the network's, (C, *network_shape), by trilinear interpolation."""
    network_axis = grid.orientation[:, 0].astype(int)
    # Resampled along the axes as they lie in memory, and turned afterwards: what is turned is mostly smaller then.
    lying = sorted(range(3), key=lambda axis: -abs(array_CDHW.strides[axis + 1]))
    shape = tuple(grid.network_shape[network_axis[axis]] for axis in lying)
    array = np.require(array_CDHW.transpose(0, *(axis + 1 for axis in lying)), requirements=("C", "W"))
    resized = _resize(torch.from_numpy(array), shape).numpy()
    standing = resized.transpose(0, *(lying.index(axis) + 1 for axis in range(3)))
    return torch.from_numpy(_orient(standing, grid.orientation))


def labels_to_network_grid(labels: npt.NDArray[np.uint8], grid: Grid) -> torch.Tensor:
    """Return labels (D, H, W) of the scan's grid on the network's, (1, *network_shape), each from the nearest voxel."""
    nearest = _orient(labels[np.newaxis], grid.orientation)
    for axis, (n, resampled) in enumerate(zip(grid.oriented_shape, grid.network_shape, strict=True), start=1):
        nearest = nearest.take(np.rint(np.linspace(0, n - 1, resampled)).astype(np.intp), axis)
    return torch.from_numpy(nearest)


def to_scan_slabs(
    array_CDHW: torch.Tensor, grid: Grid, values: int = SLAB_VALUES
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield an array of the network's grid on the scan's voxels, by trilinear interpolation, a slab at a time.

    Yields:
        The slab's planes along the first axis and its values, (C, planes, H, W) float32, in the network's axis order
        and directions: `to_scan_axes` turns what was made of them. Values do not depend on how thick the slabs are.

    Args:
        array_CDHW: on the network's grid, any floating type.
        grid: leads back.
        values: at most so many numbers in a slab of more than one plane.
    """
    planes, height, width = grid.oriented_shape
    thickness = max(1, values // (len(array_CDHW) * height * width))
    positions = torch.linspace(0, array_CDHW.shape[1] - 1, planes, dtype=torch.float64, device=array_CDHW.device)
    for start in range(0, planes, thickness):
        window = slice(start, min(start + thickness, planes))
        below = positions[window].floor().long()
        share = (positions[window] - below).float()
        above = (below + (share > 0)).clamp(max=array_CDHW.shape[1] - 1)
        first, last = int(below[0]), int(above[-1])
        slab = _in_plane(array_CDHW[:, first : last + 1], (height, width))
        yield window, _between(slab, below - first, above - first, share)


def to_scan_axes(array_DHW: npt.NDArray[_Scalar], grid: Grid) -> npt.NDArray[_Scalar]:
    """Return an array of the scan's voxels in the network's axes as the scan's file has them, (*scan_shape)."""
    return _orient(array_DHW[np.newaxis], _inverse(grid.orientation))[0]


def to_axes_of(grid: Grid) -> npt.NDArray[np.float64]:
    """Return the (4, 4) voxel index of the scan in the network's axis order and directions to that of its file."""
    affine: npt.NDArray[np.float64] = nib.orientations.inv_ornt_aff(grid.orientation, grid.scan_shape)
    return affine


def to_scan_grid(array_CDHW: torch.Tensor, grid: Grid) -> npt.NDArray[np.float32]:
    """Return an array of the network's grid on the scan's own, (C, *scan_shape), by trilinear interpolation."""
    slabs = [slab for _, slab in to_scan_slabs(array_CDHW, grid)]
    return np.stack([to_scan_axes(channel, grid) for channel in torch.cat(slabs, dim=1).numpy()])


def _orient(array_CDHW: npt.NDArray[_Scalar], orientation: npt.NDArray[np.float64]) -> npt.NDArray[_Scalar]:
    turned = np.stack([nib.orientations.apply_orientation(channel, orientation) for channel in array_CDHW])
    return np.ascontiguousarray(turned)


def _inverse(orientation: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    inverse = np.empty_like(orientation)
    for scan_axis, (network_axis, flip) in enumerate(orientation):
        inverse[int(network_axis)] = scan_axis, flip
    return inverse


def _in_plane(array_CDHW: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Return each plane interpolated to another size, float32."""
    channels, planes, *found = array_CDHW.shape
    if tuple(found) == size:
        return array_CDHW.float()
    # Each plane on its own: in three dimensions torch rounds otherwise for another thickness of the slab.
    single = array_CDHW.float().reshape(-1, 1, *found)
    return interpolate(single, size=size, mode="bilinear", align_corners=True).view(channels, planes, *size)


def _between(array_CDHW: torch.Tensor, below: torch.Tensor, above: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """Return the values at fractional positions between planes."""
    lower = array_CDHW.index_select(1, below)
    if not share.any():
        return lower
    upper = array_CDHW.index_select(1, above)
    return lower + (upper - lower) * share.view(1, -1, 1, 1)


def _resize(array_CDHW: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    if array_CDHW.shape[1:] == shape:
        return array_CDHW
    return interpolate(array_CDHW[None], size=shape, mode="trilinear", align_corners=True)[0]


def _normalise(channel: torch.Tensor, step: IntensityStep) -> None:
    """Change the intensities (D, H, W) in place."""
    if isinstance(step, Window):
        channel.sub_(step.low).div_(step.high - step.low).clamp_(0, 1)
        return
    # Sums over a large volume lose digits in float32; piece by piece, float64 takes no memory to speak of.
    pieces = channel.view(-1).split(_PIECE)
    count = int(channel.count_nonzero()) if step.nonzero else channel.numel()
    mean = sum(float(piece.double().sum()) for piece in pieces) / count
    squares = sum(float((_chosen(piece, step) - mean).square().sum()) for piece in pieces)
    # Voxels other than 0 may all be equal, in a binary image; only a constant one, refused before, has no contrast.
    deviation = math.sqrt(squares / count) or 1.0
    for piece in pieces:
        scaled = (piece.double() - mean) / deviation
        piece.copy_(torch.where(piece == 0, 0.0, scaled) if step.nonzero else scaled)


def _chosen(piece: torch.Tensor, step: ZScore) -> torch.Tensor:
    return (piece[piece != 0] if step.nonzero else piece).double()
