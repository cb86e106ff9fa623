"""The geometry that maps the scan's voxels to the network's and back: shapes, axes and steps, no intensities.

A `Grid` exists in memory while a case runs; `frame_of` stores it in the `Frame` of a result, `grid_of` restores it.
"""

from dataclasses import dataclass
from typing import Final, TypeVar

import nibabel as nib
import numpy as np
import numpy.typing as npt

from service.bundle.schema import ServiceConfig
from service.result.frame import Frame, PartFrame, encode_padding
from service.result.nifti import without_free_text
from service.volume import Volume

Shape = tuple[int, int, int]

NEGLIGIBLE_VOXELS: Final = 1e-3
"""Nothing is resampled where the spacing is so close to the bundle's that no voxel would move by more than this."""

_Number = TypeVar("_Number", int, float)


@dataclass(frozen=True, slots=True, eq=False)
class PartGrid:
    """The network's grid on one part of a scan.

    Args:
        channels: class of the result for each output channel of the network; background, 0, first.
        to_part: (4, 4) voxel index of the scan in the network's axis order to voxel index of the part.
        shape: voxels of the part.
    """

    channels: tuple[int, ...]
    to_part: npt.NDArray[np.float64]
    shape: Shape


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """How the network's grid lies on the scan's, so that the network's output can be mapped back.

    Args:
        scan_shape: voxels along i, j, k in the scan's file.
        orientation: (3, 2) nibabel orientation: network axis and flip of each scan axis.
        oriented_shape: the scan's shape in the network's axis order.
        network_shape: voxels after resampling.
        step: scan voxels per network voxel, along the network's axes.
        parts: the network's grid on each located part; empty if the network saw the whole scan.
    """

    scan_shape: tuple[int, ...]
    orientation: npt.NDArray[np.float64]
    oriented_shape: tuple[int, ...]
    network_shape: tuple[int, ...]
    step: tuple[float, ...]
    parts: tuple[PartGrid, ...] = ()

    @classmethod
    def of(cls, volume: Volume, config: ServiceConfig) -> "Grid":
        """Return the grid on which the bundle's network sees this volume.

        It starts at the centre of the first voxel, has exactly the bundle's spacing, and ends as close as possible to
        the centre of the last voxel: the same grid as MONAI's `Spacing`.
        """
        of_scan = nib.orientations.io_orientation(volume.affine)
        of_network = nib.orientations.axcodes2ornt(tuple(config.orientation))
        orientation = nib.orientations.ornt_transform(of_scan, of_network)
        axis_of = np.argsort(orientation[:, 0])
        shape = tuple(volume.shape[axis] for axis in axis_of)
        resampled, step = zip(
            *(
                _steps(n, mm, target)
                for n, mm, target in zip(shape, volume.spacing_mm[axis_of], config.spacing_mm, strict=True)
            ),
            strict=True,
        )
        return cls(volume.shape, orientation, shape, resampled, step)


def _steps(n: int, mm: float, target_mm: float) -> tuple[int, float]:
    """Return how many voxels of the target size replace n voxels of size mm, and the step in voxels of size mm."""
    steps = (n - 1) * mm / target_mm
    if abs(steps - (n - 1)) < NEGLIGIBLE_VOXELS:
        return n, 1.0
    return round(steps + 1), target_mm / mm


def to_axes_of(grid: Grid) -> npt.NDArray[np.float64]:
    """Return the (4, 4) matrix from voxel indices in the network's axis order and directions to those of the scan's file."""
    affine: npt.NDArray[np.float64] = nib.orientations.inv_ornt_aff(grid.orientation, grid.scan_shape)
    return affine


def frame_of(volume: Volume, grid: Grid, config: ServiceConfig) -> Frame:
    """Return the frame that leads from the stored logits of a case back to its scan.

    Args:
        volume: the scan.
        grid: of the scan and the network.
        config: of the result: the bundle's, or with the labels of the located parts.
    """
    return Frame(
        scan_shape=volume.shape,
        orientation=[(int(axis), int(flip)) for axis, flip in grid.orientation],
        oriented_shape=_three(grid.oriented_shape),
        network_shape=_three(grid.network_shape),
        step=_three(grid.step),
        affine=volume.affine.tolist(),
        header=without_free_text(volume.header).hex(),
        config=config,
        parts=tuple(
            PartFrame(channels=list(part.channels), to_part=part.to_part.tolist(), shape=part.shape)
            for part in grid.parts
        ),
        padding=None if volume.padding is None else encode_padding(volume.padding),
    )


def grid_of(frame: Frame) -> Grid:
    """Return the grid that `frame_of` stored."""
    orientation = np.array(frame.orientation, np.float64)
    parts = tuple(PartGrid(tuple(part.channels), np.array(part.to_part), part.shape) for part in frame.parts)
    return Grid(frame.scan_shape, orientation, frame.oriented_shape, frame.network_shape, frame.step, parts)


def _three(values: tuple[_Number, ...]) -> tuple[_Number, _Number, _Number]:
    d, h, w = values
    return d, h, w
