from collections.abc import Callable

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.bundle.schema import ServiceConfig
from service.pipeline.grid import Grid, PartGrid, frame_of, grid_of, to_axes_of
from service.result.frame import Frame
from service.volume import Volume

Affine = npt.NDArray[np.float64]


def volume_of(shape: tuple[int, int, int], affine: Affine) -> Volume:
    """Return an empty volume of one channel with a NIfTI header."""
    return Volume(
        np.zeros((1, *shape), np.float32), affine, bytes(nib.Nifti1Image(np.zeros(shape), affine).to_bytes()[:348])
    )


def test_an_oblique_scan_takes_the_nearest_axes(config: Callable[..., ServiceConfig]) -> None:
    """Rotated by 30 degrees, the file's axes are still closest to right, anterior and superior."""
    affine = np.array([[0.866, -0.5, 0, 0], [0.5, 0.866, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    grid = Grid.of(volume_of((2, 3, 4), affine), config())

    assert grid.orientation.tolist() == [[0, 1], [1, 1], [2, 1]]


@pytest.mark.parametrize(
    ("voxels", "spacing", "target", "expected"),
    [(5, 2.0, 1.0, 9), (9, 1.0, 2.0, 5), (5, 1.0, 1.0, 5), (3, 17.0, 1.0, 35), (2, 0.1, 1.0, 1), (4, 1.0, 2.0, 2)],
)
def test_as_many_steps_as_come_nearest_to_the_last_voxel(
    voxels: int, spacing: float, target: float, expected: int, config: Callable[..., ServiceConfig]
) -> None:
    """The number of steps is the distance between the outer centres divided by the target spacing, rounded."""
    volume = volume_of((voxels, 2, 2), np.diag([spacing, 1, 1, 1]))

    grid = Grid.of(volume, config(spacing_mm=(target, 1.0, 1.0)))

    assert grid.network_shape == (expected, 2, 2)


def test_spacing_follows_the_axis_that_it_belongs_to(config: Callable[..., ServiceConfig]) -> None:
    """A file stored as (S, R, A) with slices of 4 mm gets three new slices between two along S."""
    affine = np.array([[0.0, 1, 0, 0], [0, 0, 2, 0], [4, 0, 0, 0], [0, 0, 0, 1]])

    grid = Grid.of(volume_of((3, 5, 7), affine), config(spacing_mm=(1.0, 1.0, 1.0)))

    assert grid.oriented_shape == (5, 7, 3)
    assert grid.network_shape == (5, 13, 9)


@given(
    order=st.permutations(range(3)),
    signs=st.tuples(*[st.sampled_from((-1.0, 1.0))] * 3),
    shape=st.tuples(*[st.integers(2, 9)] * 3),
    spacing=st.tuples(*[st.floats(0.3, 5)] * 3),
)
def test_a_frame_leads_back_to_its_grid(
    order: list[int], signs: tuple[float, ...], shape: tuple[int, int, int], spacing: tuple[float, ...]
) -> None:
    """For any axes of the scan, a frame written to JSON and read again restores the grid and its parts."""
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3) * signs * spacing)[order]
    config = ServiceConfig.model_validate(_TINY)
    volume = volume_of(shape, affine)
    grid = Grid.of(volume, config)
    part = PartGrid((0, 1), np.linalg.inv(affine).astype(np.float64), (3, 4, 5))
    grid = Grid(grid.scan_shape, grid.orientation, grid.oriented_shape, grid.network_shape, grid.step, (part,))

    frame = Frame.model_validate_json(frame_of(volume, grid, config).model_dump_json())
    actual = grid_of(frame)

    assert (actual.scan_shape, actual.oriented_shape, actual.network_shape, actual.step) == (
        *(grid.scan_shape, grid.oriented_shape, grid.network_shape, grid.step),
    )
    assert np.array_equal(actual.orientation, grid.orientation)
    assert frame.affine_ras.tobytes() == affine.tobytes()
    (read,) = actual.parts
    assert (read.channels, read.shape, read.to_part.tobytes()) == (part.channels, part.shape, part.to_part.tobytes())


def test_axes_of_the_network_lead_to_those_of_the_file(config: Callable[..., ServiceConfig]) -> None:
    """The last voxel along a flipped axis is the network's first."""
    grid = Grid.of(volume_of((4, 5, 6), np.diag([-1.0, 1, 1, 1])), config())

    assert (to_axes_of(grid) @ [0, 0, 0, 1]).tolist() == [3, 0, 0, 1]


_TINY = {
    "name": "tiny",
    "version": "0.0.1",
    "description": "A tiny network for tests.",
    "modality": "MR",
    "anatomy": "a box",
    "channels": ["T1"],
    "network": {
        "name": "UNet",
        "arguments": {"spatial_dims": 3, "in_channels": 1, "out_channels": 2, "channels": [4, 8], "strides": [2]},
    },
    "spacing_mm": [1.0, 1.0, 1.0],
    "intensity": [{"step": "zscore"}],
    "patch_size": [8, 8, 8],
    "labels": [
        {"value": 0, "name": "background", "color": [0, 0, 0]},
        {"value": 1, "name": "box", "color": [230, 159, 0]},
    ],
    "temperature": [1.0, 1.0],
}
