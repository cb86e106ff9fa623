import numpy as np
import pytest

from model_training.evaluation.resolution import at_spacing, common_spacings
from model_training.recipes.hippocampus import HIPPOCAMPUS
from service.volume import Volume

CONFIG = HIPPOCAMPUS.service
SHAPE = (36, 50, 34)


def field(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return a linear function of the place in mm."""
    index = np.indices(shape).reshape(3, -1)
    return ((2.0, -1.0, 3.0) @ (affine[:3, :3] @ index + affine[:3, 3:])).reshape(shape).astype(np.float32)


@pytest.mark.parametrize(
    "spacing", [(1.0, 1.0, 1.0), (0.5, 0.5, 0.5), (1.5, 1.5, 1.5), (1.0, 1.0, 4.5), (3.0, 0.7, 0.7)]
)
@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1)])
def test_voxels_stay_in_their_place(spacing: tuple[float, float, float], axes: tuple[int, ...]) -> None:
    """A linear field keeps its values at every point inside, whatever order the file's axes have."""
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[:, list(axes)]
    affine[:3, 3] = (-20, 30, 5)
    shape = tuple(np.array(SHAPE)[list(axes)])
    ball = np.linalg.norm(np.indices(shape) - np.array(shape).reshape(3, 1, 1, 1) / 2, axis=0) < 9
    scan = Volume(field(affine, shape)[np.newaxis], affine, b"")

    resampled, classes = at_spacing(scan, ball.astype(np.uint8), spacing, CONFIG)

    inner = (slice(3, -3),) * 3
    np.testing.assert_allclose(
        resampled.array_CDHW[0][inner].astype(np.float64),
        field(resampled.affine, resampled.shape)[inner],
        atol=0.15,  # splines at the rim
    )
    in_ras = resampled.spacing_mm[np.argsort(axes)]
    assert in_ras == pytest.approx(spacing)
    assert classes.shape == resampled.shape
    assert classes.sum() * resampled.voxel_ml == pytest.approx(ball.sum() * scan.voxel_ml, rel=0.08)


def test_the_same_voxel_size_changes_nothing() -> None:
    """Identity, but for the arithmetic of splines."""
    generator = np.random.default_rng(0)
    scan = Volume(generator.normal(500, 80, (1, *SHAPE)).astype(np.float32), np.eye(4), b"")
    classes = generator.integers(0, 3, SHAPE).astype(np.uint8)

    resampled, same = at_spacing(scan, classes, (1.0, 1.0, 1.0), CONFIG)

    assert abs(resampled.array_CDHW.astype(np.float64) - scan.array_CDHW.astype(np.float64)).max() < 0.01
    np.testing.assert_array_equal(same, classes)


def test_thick_slices_are_measured_across_each_axis() -> None:
    """Coronal, sagittal and axial stacks differ; the card's own voxel size is measured anyway."""
    spacings = common_spacings()

    assert len(set(spacings)) == len(spacings)
    assert {(3.0, 1.0, 1.0), (1.0, 3.0, 1.0), (1.0, 1.0, 6.0), (0.5, 0.5, 0.5)} <= set(spacings)
    assert (1.0, 1.0, 1.0) not in spacings
