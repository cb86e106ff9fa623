import numpy as np
import pytest

from service.volume import Volume

# 30 degrees about the third axis, voxels of 1 x 1.5 x 2 mm: the first two axes leave the planes of the body.
TURN = np.array([[np.cos(np.pi / 6), -0.5, 0], [0.5, np.cos(np.pi / 6), 0], [0, 0, 1]])


def _volume(matrix: np.ndarray) -> Volume:
    affine = np.eye(4)
    affine[:3, :3] = matrix
    affine[:3, 3] = (-90.0, 12.0, 7.0)
    return Volume(np.zeros((2, 3, 4, 5), np.int16), affine, bytes(348))


def test_shape_leaves_the_channels_out() -> None:
    """The shape is that of the grid, without channels."""
    assert _volume(np.eye(3)).shape == (3, 4, 5)


def test_spacing_is_the_length_of_the_axes() -> None:
    """Rotating and flipping the grid does not change the spacing."""
    volume = _volume(TURN @ np.diag([-1.0, 1.5, 2.0]))

    np.testing.assert_allclose(volume.spacing_mm, [1.0, 1.5, 2.0])


@pytest.mark.parametrize("flip", [1.0, -1.0])
def test_volume_of_a_voxel_is_positive(flip: float) -> None:
    """1 x 1.5 x 2 mm are 0.003 ml, also for left-handed axes."""
    assert _volume(TURN @ np.diag([flip, 1.5, 2.0])).voxel_ml == pytest.approx(0.003)


def test_a_file_without_remarks_has_no_warnings() -> None:
    """Warnings are empty by default, and a volume is immutable."""
    volume = _volume(np.eye(3))

    assert volume.warnings == ()
    with pytest.raises(AttributeError):
        volume.affine = np.eye(4)  # type: ignore[misc]
