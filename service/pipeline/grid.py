"""How the scan's voxels become the network's, and the way back: shapes, axes and steps, no intensities.

A `Grid` lives with a case in memory; `frame_of` writes it into the `Frame` of a result, `grid_of` reads it back.
"""

from dataclasses import dataclass
from typing import Final, TypeVar

import nibabel as nib
import numpy as np
import numpy.typing as npt

from service.bundle.schema import ServiceConfig
from service.result.frame import Frame, PartFrame
from service.result.nifti import without_free_text
from service.volume import Volume

Shape = tuple[int, int, int]

NEGLIGIBLE_VOXELS: Final = 1e-3
"""Where a spacing is so near to the bundle's that no voxel would move by more, nothing is resampled."""

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
    """How a scan's grid became the network's, so that the network's output can be brought back.

    Args:
        scan_shape: voxels along i, j, k of the scan as it came.
        orientation: (3, 2) nibabel orientation: network axis and flip of each scan axis.
        oriented_shape: the scan's shape in the network's axis order.
        network_shape: voxels after resampling.
        step: voxels of the scan from one voxel of the network to the next, along the network's axes.
        parts: where a locator found the anatomy, the network's grid on each part; none where it saw the scan as it is.
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

        It begins at the centre of the first voxel and goes on in steps of exactly the bundle's spacing, as often as
        brings it nearest to the centre of the last one: MONAI's `Spacing` lays the same.
        """
        found = nib.orientations.io_orientation(volume.affine)
        wanted = nib.orientations.axcodes2ornt(tuple(config.orientation))
        orientation = nib.orientations.ornt_transform(found, wanted)
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
    """Return how many voxels of a target size stand for n voxels of another, and how many of these one step crosses."""
    steps = (n - 1) * mm / target_mm
    if abs(steps - (n - 1)) < NEGLIGIBLE_VOXELS:
        return n, 1.0
    return round(steps + 1), target_mm / mm


def to_axes_of(grid: Grid) -> npt.NDArray[np.float64]:
    """Return the (4, 4) voxel index of the scan in the network's axis order and directions to that of its file."""
    affine: npt.NDArray[np.float64] = nib.orientations.inv_ornt_aff(grid.orientation, grid.scan_shape)
    return affine


def frame_of(volume: Volume, grid: Grid, config: ServiceConfig) -> Frame:
    """Return what leads back from the logits of a case.

    Args:
        volume: the scan.
        grid: its place on the network's axes.
        config: of the result: the bundle's, or where parts were located, with their labels.
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
    )


def grid_of(frame: Frame) -> Grid:
    """Return the grid that `frame_of` was given."""
    orientation = np.array(frame.orientation, np.float64)
    parts = tuple(PartGrid(tuple(part.channels), np.array(part.to_part), part.shape) for part in frame.parts)
    return Grid(frame.scan_shape, orientation, frame.oriented_shape, frame.network_shape, frame.step, parts)


def _three(values: tuple[_Number, ...]) -> tuple[_Number, _Number, _Number]:
    d, h, w = values
    return d, h, w
