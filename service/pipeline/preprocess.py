"""Volume -> the network's input grid and intensities, as the bundle declares them, and back to the scan's own grid.

Training and serving both call this module: there is no other preprocessing.
"""

import math
from collections.abc import Callable, Iterator
from typing import Final, TypeVar

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import grid_sample

from service.bundle.schema import IntensityStep, RobustZScore, ServiceConfig, Window, ZScore
from service.errors import ConstantVolume, InvalidRequest, VolumeTooLarge
from service.intake.formats.geometry import FEW_VOXELS, MAX_VOXELS
from service.pipeline.grid import Grid
from service.pipeline.tissue import Mask, Tissue, tissue_of
from service.volume import Volume

SLAB_VALUES: Final = 1 << 22
"""Values per slab on the way back to the scan's grid: 16 MiB of float32.

Smaller slabs interpolate border planes twice and write files in shorter runs; larger ones leave the processor's cache.
"""

_LARGEST_SLAB: Final = 1 << 28
"""Values per slab on a GPU: 1 GiB of float32."""

_BYTES_PER_VALUE: Final = 48
"""Memory of a GPU per value of a slab: several float32 copies of it, and as much again for others."""

MOST_FINER: Final = 64
"""Voxels at the model's voxel size for each voxel of a large scan: four times as fine along each axis."""

_FLOAT32_COUNTS = 1 << 24
_PIECE = 1 << 16
"""Values that are normalised at a time, as float64: they fit into a processor's innermost caches."""

_PERCENTILE_SAMPLE: Final = 1 << 22
"""Percentiles are those of at least so many evenly spaced voxels, or of all."""

_Scalar = TypeVar("_Scalar", bound=np.generic)


def preprocess(volume: Volume, config: ServiceConfig, tissue: Tissue | None = None) -> tuple[torch.Tensor, Grid]:
    """Return the network's input, (C, D, H, W) float32, and the grid that leads back to the scan.

    Args:
        volume: the scan.
        config: of the bundle.
        tissue: of the scan, if it is known; otherwise it is found where a step needs it.

    Raises:
        InvalidRequest: the number of channels differs from the bundle's.
        ConstantVolume: a channel has a single intensity.
        VolumeTooLarge: too many voxels at the bundle's voxel size.
    """
    dtype = _arithmetic(volume, config)
    grid = Grid.of(volume, config)
    _reject_finer(grid)
    if tissue is None and needs_tissue(config):
        tissue = tissue_of(volume)
    padding = tissue.padding if tissue else _declared(volume)
    array = volume.array_CDHW if padding is None else _without(volume.array_CDHW, padding)
    image = to_network_grid(array, grid, dtype)
    nothing = None if padding is None else _nearest(padding, grid)
    for step in config.intensity:
        for c, channel in enumerate(image):
            _normalise(channel, step, None if nothing is None else nothing[c])
        image = image.float()
    return image, grid


def _reject_finer(grid: Grid) -> None:
    """Refuse a scan that would have far more voxels at the model's voxel size than it has: they would show nothing more.

    Raises:
        VolumeTooLarge: more than `MAX_VOXELS`, or more than `FEW_VOXELS` and `MOST_FINER` times those of the scan.
    """
    most = min(MAX_VOXELS, max(FEW_VOXELS, MOST_FINER * math.prod(grid.scan_shape)))
    if math.prod(grid.network_shape) > most:
        msg = (
            f"At the model's voxel size the scan would have more than {most} voxels. Crop it, or check its voxel size."
        )
        raise VolumeTooLarge(msg)


def _arithmetic(volume: Volume, config: ServiceConfig) -> type[np.floating]:
    """Return the type in which a scan's intensities are resampled, and refuse scans without any contrast.

    Raises:
        InvalidRequest: the number of channels differs from the bundle's.
        ConstantVolume: a channel has a single intensity.
    """
    if len(volume.array_CDHW) != len(config.channels):
        msg = f"The scan has {len(volume.array_CDHW)} channels; the model takes {len(config.channels)}."
        raise InvalidRequest(msg)
    extremes = [(float(channel.min()), float(channel.max())) for channel in volume.array_CDHW]
    if any(low == high for low, high in extremes):
        msg = "Every voxel has the same intensity: there is nothing to segment. Check that the right file was sent."
        raise ConstantVolume(msg)
    # float32 holds integers up to 2^24: larger intensities would lose the differences that z-scoring amplifies.
    exact = max(max(-low, high) for low, high in extremes) <= _FLOAT32_COUNTS
    return np.float32 if exact else np.float64


def needs_tissue(config: ServiceConfig) -> bool:
    """Return whether a step must know which voxels show nothing."""
    return any(isinstance(step, RobustZScore) for step in config.intensity)


def _declared(volume: Volume) -> Mask | None:
    """Return the declared padding of every channel, (C, D, H, W).

    Raises:
        ConstantVolume: every voxel is padding.
    """
    if volume.padding is None:
        return None
    if volume.padding.all():
        msg = "Every voxel is declared as padding: there is nothing to segment. Check that the right file was sent."
        raise ConstantVolume(msg)
    return np.broadcast_to(volume.padding, volume.array_CDHW.shape)


def _without(array_CDHW: npt.NDArray[np.generic], padding: Mask) -> npt.NDArray[np.generic]:
    """Return a copy in which padding has the median of the rest: interpolation must not mix the two."""
    filled = array_CDHW.copy()
    for channel, nothing in zip(filled, padding, strict=True):
        if nothing.any():
            channel[nothing] = np.median(channel[~nothing]).astype(channel.dtype)
    return filled


def to_network_grid(
    array_CDHW: npt.NDArray[np.generic], grid: Grid, dtype: type[np.floating] = np.float32
) -> torch.Tensor:
    """Resample intensities from the scan's grid to the network's, (C, *network_shape), by trilinear interpolation.

    Args:
        array_CDHW: intensities of any type.
        grid: leads from the scan to the network.
        dtype: of the arithmetic and the result.
    """
    network_axis = grid.orientation[:, 0].astype(int)
    # Resample in memory order and reorient afterwards: the resampled array is usually smaller.
    memory_order = sorted(range(3), key=lambda axis: -abs(array_CDHW.strides[axis + 1]))
    array = array_CDHW.transpose(0, *(axis + 1 for axis in memory_order))
    shape = [grid.network_shape[network_axis[axis]] for axis in memory_order]
    at = []
    for axis, n in zip(memory_order, array.shape[1:], strict=True):
        positions = _positions(grid.network_shape[network_axis[axis]], grid.step[network_axis[axis]], n)
        at.append(positions if grid.orientation[axis, 1] > 0 else n - 1 - positions.flip(0))
    resampled = np.empty((len(array), *shape), dtype)
    # A few planes at a time: beside the result, a large scan is never held whole in floating point.
    for window, slab in _sampled(lambda planes: torch.from_numpy(np.array(array[:, planes], dtype)), array.shape, at):
        resampled[:, window] = slab
    in_file_order = resampled.transpose(0, *(memory_order.index(axis) + 1 for axis in range(3)))
    return torch.from_numpy(_orient(in_file_order, grid.orientation))


def labels_to_network_grid(labels: npt.NDArray[np.uint8], grid: Grid) -> torch.Tensor:
    """Resample labels (D, H, W) from the scan's grid to the network's, (1, *network_shape), by nearest neighbour."""
    return _nearest(labels[np.newaxis], grid)


def _nearest(array_CDHW: npt.NDArray[np.generic], grid: Grid) -> torch.Tensor:
    nearest = _orient(array_CDHW, grid.orientation)
    for axis, n in enumerate(grid.oriented_shape):
        at = _positions(grid.network_shape[axis], grid.step[axis], n)
        nearest = nearest.take(np.rint(at.numpy()).astype(np.intp), axis + 1)
    return torch.from_numpy(nearest)


def to_scan_slabs(
    array_CDHW: torch.Tensor, grid: Grid, values: int | None = None
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Resample an array from the network's grid to the scan's voxels by trilinear interpolation, slab by slab.

    Yields:
        The slab's planes along the first axis and its values, (C, planes, H, W) float32, in the network's axis order
        and directions; `to_scan_axes` reorients what is computed from them. Values do not depend on slab thickness.

    Args:
        array_CDHW: on the network's grid, any floating type.
        grid: leads back to the scan.
        values: maximum number of values in a slab of more than one plane; by default what suits the array's device.
    """
    at = [
        _positions(n, 1 / step, available)
        for n, step, available in zip(grid.oriented_shape, grid.step, array_CDHW.shape[1:], strict=True)
    ]

    def read(planes: slice) -> torch.Tensor:
        return array_CDHW[:, planes].to(torch.float32, copy=True)  # a copy, because the caller may change it in place

    yield from _sampled(read, tuple(array_CDHW.shape), at, values or _slab_values(array_CDHW.device))


def _slab_values(device: torch.device) -> int:
    """Return the number of values per slab: on a GPU a slab takes a good part of the free memory."""
    if device.type != "cuda":
        return SLAB_VALUES
    free, _ = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return max(SLAB_VALUES, min(_LARGEST_SLAB, (free + unused) // _BYTES_PER_VALUE))


def to_scan_axes(array_DHW: npt.NDArray[_Scalar], grid: Grid) -> npt.NDArray[_Scalar]:
    """Reorient an array of the scan's voxels from the network's axes to those of the scan's file, (*scan_shape)."""
    return _orient(array_DHW[np.newaxis], _inverse(grid.orientation))[0]


def to_scan_grid(array_CDHW: torch.Tensor, grid: Grid) -> npt.NDArray[np.float32]:
    """Resample an array from the network's grid to the scan's own, (C, *scan_shape), by trilinear interpolation."""
    slabs = [slab for _, slab in to_scan_slabs(array_CDHW, grid)]
    return np.stack([to_scan_axes(channel, grid) for channel in torch.cat(slabs, dim=1).numpy()])


def _orient(array_CDHW: npt.NDArray[_Scalar], orientation: npt.NDArray[np.float64]) -> npt.NDArray[_Scalar]:
    reoriented = np.stack([nib.orientations.apply_orientation(channel, orientation) for channel in array_CDHW])
    return np.ascontiguousarray(reoriented)


def _inverse(orientation: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    inverse = np.empty_like(orientation)
    for scan_axis, (network_axis, flip) in enumerate(orientation):
        inverse[int(network_axis)] = scan_axis, flip
    return inverse


def _positions(n: int, step: float, available: int) -> torch.Tensor:
    """Return the indices, (n,) float64, of n samples a step apart among the available ones, clamped to the last."""
    return (torch.arange(n, dtype=torch.float64) * step).clamp_(max=available - 1)


def _sampled(
    read: Callable[[slice], torch.Tensor], shape: tuple[int, ...], at: list[torch.Tensor], values: int = SLAB_VALUES
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Interpolate an array trilinearly at the positions along each axis, slab by slab along the first.

    Args:
        read: returns planes of the array, (C, planes, H, W), as floating point.
        shape: (C, D, H, W) of the array.
        at: positions along D, H and W.
        values: maximum number of values in a slab of more than one plane.
    """
    planes, rows, columns = at
    thickness = max(1, values // (shape[0] * len(rows) * len(columns)))
    # Interpolate between planes first where that reduces their number; all slabs in one order, so that bits agree.
    between_first = len(planes) < shape[1]
    for start in range(0, len(planes), thickness):
        window = slice(start, min(start + thickness, len(planes)))
        below = planes[window].floor().long()
        fraction = planes[window] - below
        above = planes[window].ceil().long()
        first = int(below[0])
        slab = read(slice(first, int(above[-1]) + 1))
        if between_first:
            yield window, _in_plane(_between(slab, below - first, above - first, fraction), rows, columns)
        else:
            yield window, _between(_in_plane(slab, rows, columns), below - first, above - first, fraction)


def _in_plane(array_CDHW: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Interpolate each plane bilinearly at positions along rows and columns."""
    channels, planes, height, width = array_CDHW.shape
    if _every_voxel(rows, height) and _every_voxel(columns, width):
        return array_CDHW
    # In grid_sample's coordinates -1 and 1 are the centres of the first and the last voxel.
    y, x = (2 * at / max(n - 1, 1) - 1 for at, n in ((rows, height), (columns, width)))
    coordinates = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)[None].to(array_CDHW, non_blocking=True)
    if array_CDHW.device.type != "cpu":
        return in_all_planes(array_CDHW, coordinates)
    interpolated = array_CDHW.new_empty((channels, planes, len(rows), len(columns)))
    for plane in range(planes):  # one by one, because all at once would leave the processor's cache
        interpolated[:, plane] = grid_sample(
            array_CDHW[None, :, plane], coordinates, mode="bilinear", padding_mode="border", align_corners=True
        )[0]
    return interpolated


def in_all_planes(array_CDHW: torch.Tensor, coordinates: torch.Tensor) -> torch.Tensor:
    """Interpolate all planes at once at coordinates (1, rows, columns, 2) of `grid_sample`, as suits a GPU."""
    planes = array_CDHW.transpose(0, 1)
    everywhere = coordinates.expand(len(planes), -1, -1, -1)
    interpolated = grid_sample(planes, everywhere, mode="bilinear", padding_mode="border", align_corners=True)
    return interpolated.transpose(0, 1)


def _between(
    array_CDHW: torch.Tensor, below: torch.Tensor, above: torch.Tensor, fraction: torch.Tensor
) -> torch.Tensor:
    """Interpolate linearly, at fractions of the way from planes below to planes above."""
    if not fraction.any() and _every_voxel(below, array_CDHW.shape[1]):
        return array_CDHW
    lower = array_CDHW.index_select(1, below.to(array_CDHW.device, non_blocking=True))
    if not fraction.any():
        return lower
    upper = array_CDHW.index_select(1, above.to(array_CDHW.device, non_blocking=True))
    return lower + (upper - lower) * fraction.to(array_CDHW, non_blocking=True).view(1, -1, 1, 1)


def _every_voxel(at: torch.Tensor, n: int) -> bool:
    """Return whether the positions are exactly the n voxels themselves, so that no interpolation is needed."""
    return len(at) == n and bool((at == torch.arange(n)).all())


def _normalise(channel: torch.Tensor, step: IntensityStep, padding: torch.Tensor | None) -> None:
    """Normalise the intensities (D, H, W) in place by the statistics of what is no padding; padding becomes 0."""
    # Without padding the very same sums are made as ever: a view, in the order of memory.
    tissue = channel.view(-1) if padding is None else channel[~padding]
    if isinstance(step, Window):
        channel.sub_(step.low).div_(step.high - step.low).clamp_(0, 1)
    elif isinstance(step, RobustZScore):
        _normalise_robustly(channel, step, tissue)
    else:
        _normalise_all(channel, step, tissue)
    if padding is not None:
        channel[padding] = 0


def _normalise_all(channel: torch.Tensor, step: ZScore, tissue: torch.Tensor) -> None:
    # Sums over a large volume lose digits in float32; piece by piece, float64 costs almost no memory.
    pieces = tissue.split(_PIECE)
    count = int(tissue.count_nonzero()) if step.nonzero else tissue.numel()
    mean = sum(float(piece.double().sum()) for piece in pieces) / count
    squares = sum(float(_counted(piece, step).sub_(mean).square_().sum()) for piece in pieces)
    # In a binary image all nonzero voxels are equal: the deviation is 0, though the image has contrast.
    deviation = math.sqrt(squares / count) or 1.0
    for piece in channel.view(-1).split(_PIECE):
        scaled = piece.to(torch.float64, copy=True).sub_(mean).div_(deviation)
        piece.copy_(torch.where(piece == 0, 0.0, scaled) if step.nonzero else scaled)


def _normalise_robustly(channel: torch.Tensor, step: RobustZScore, tissue: torch.Tensor) -> None:
    sample = tissue[:: max(1, len(tissue) // _PERCENTILE_SAMPLE)].double().numpy()
    low, high = (float(value) for value in np.percentile(sample, [step.low_percentile, step.high_percentile]))
    pieces = tissue.split(_PIECE)  # as float64 only piece by piece
    mean = sum(float(piece.to(torch.float64, copy=True).clamp_(low, high).sum()) for piece in pieces) / len(tissue)
    squares = sum(
        float(piece.to(torch.float64, copy=True).clamp_(low, high).sub_(mean).square_().sum()) for piece in pieces
    )
    deviation = math.sqrt(squares / len(tissue)) or 1.0
    for piece in channel.view(-1).split(_PIECE):
        piece.copy_(piece.to(torch.float64, copy=True).clamp_(low, high).sub_(mean).div_(deviation))


def _counted(piece: torch.Tensor, step: ZScore) -> torch.Tensor:
    return (piece[piece != 0] if step.nonzero else piece).to(torch.float64, copy=True)
