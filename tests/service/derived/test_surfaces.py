import time

import numpy as np
import pytest

from service.derived.surfaces import hd95_mm, nsd


def border(mask: np.ndarray) -> np.ndarray:
    """Return the indices of the voxels of a mask that have a face neighbour outside it."""
    voxels = []
    for index in np.argwhere(mask):
        for step in np.vstack([np.eye(3, dtype=int), -np.eye(3, dtype=int)]):
            neighbour = index + step
            inside = (neighbour >= 0).all() and (neighbour < mask.shape).all()
            if not inside or not mask[tuple(neighbour)]:
                voxels.append(index)
                break
    return np.array(voxels)


def brute_force(a: np.ndarray, b: np.ndarray, spacing: list[float], tolerance: float) -> tuple[float, float]:
    """Return HD95 and NSD from the distances between all pairs of surface voxels."""
    pairs = (border(a)[:, np.newaxis] - border(b)[np.newaxis]) * np.array(spacing)
    distance = np.sqrt((pairs**2).sum(axis=2))
    there, back = distance.min(axis=1), distance.min(axis=0)
    hd95 = max(np.percentile(there, 95), np.percentile(back, 95))
    return hd95, ((there <= tolerance).sum() + (back <= tolerance).sum()) / (there.size + back.size)


def ball(centre: tuple[float, ...], radius: float, shape: tuple[int, ...] = (14, 13, 12)) -> np.ndarray:
    """Return a mask of the voxels within a radius."""
    grid = np.moveaxis(np.indices(shape), 0, -1)
    inside: np.ndarray = ((grid - centre) ** 2).sum(axis=-1) <= radius**2
    return inside


@pytest.mark.parametrize("spacing", [[1.0, 1.0, 1.0], [0.7, 0.8, 5.0]])
@pytest.mark.parametrize("tolerance", [0.5, 1.0, 2.5])
@pytest.mark.parametrize(
    ("reference", "predicted"),
    [
        (ball((6, 6, 6), 4), ball((7, 6, 5), 4)),
        (ball((1, 1, 1), 4), ball((2, 1, 1), 3)),
        (ball((4, 4, 4), 3), ball((4, 4, 4), 3) | ball((12, 11, 10), 1)),
        (ball((3, 3, 3), 1), ball((10, 10, 9), 2)),
        (np.random.default_rng(0).random((6, 7, 5)) < 0.4, np.random.default_rng(1).random((6, 7, 5)) < 0.4),
    ],
    ids=["shifted", "at the image's border", "with a stray piece", "apart", "ragged"],
)
def test_scores_are_those_of_all_pairs_of_surface_voxels(
    reference: np.ndarray, predicted: np.ndarray, spacing: list[float], tolerance: float
) -> None:
    """HD95 and NSD equal a brute force over all pairs, also for anisotropic voxels."""
    distance, agreement = brute_force(reference, predicted, spacing, tolerance)

    assert hd95_mm(reference, predicted, spacing) == pytest.approx(distance, rel=1e-5)
    assert nsd(reference, predicted, spacing, tolerance) == pytest.approx(agreement, rel=1e-6)


def test_two_sheets_two_slices_apart() -> None:
    """With slices of 5 mm the sheets are 10 mm apart: they agree within 10 mm but not within 9."""
    reference, predicted = np.zeros((4, 4, 6), bool), np.zeros((4, 4, 6), bool)
    reference[:, :, 1] = predicted[:, :, 3] = True

    assert hd95_mm(reference, predicted, [1, 1, 5]) == 10
    assert nsd(reference, predicted, [1, 1, 5], 10.0) == 1
    assert nsd(reference, predicted, [1, 1, 5], 9.0) == 0
    assert (hd95_mm(reference, reference, [1, 1, 5]), nsd(reference, reference, [1, 1, 5], 0.0)) == (0, 1)


def test_absent_structures_are_undefined_and_missed_ones_agree_nowhere() -> None:
    """A structure that the reference lacks has no scores; a missed one has no distance and an NSD of 0."""
    nothing, something = np.zeros((14, 13, 12), bool), ball((6, 6, 6), 3)

    for predicted in (nothing, something):
        assert np.isnan([hd95_mm(nothing, predicted, [1, 1, 1]), nsd(nothing, predicted, [1, 1, 1], 1.0)]).all()
    assert np.isnan(hd95_mm(something, nothing, [1, 1, 1]))
    assert nsd(something, nothing, [1, 1, 1], 1.0) == 0


def test_a_small_structure_in_a_large_image_takes_no_time() -> None:
    """Only the bounding box of both masks is processed: 256^3 voxels with a small ball take less than two seconds."""
    reference, predicted = np.zeros((256, 256, 256), bool), np.zeros((256, 256, 256), bool)
    reference[100:114, 100:113, 100:112] = ball((6, 6, 6), 4)
    predicted[101:115, 100:113, 100:112] = ball((6, 6, 6), 4)

    start = time.process_time()
    actual = hd95_mm(reference, predicted, [1, 1, 1]), nsd(reference, predicted, [1, 1, 1], 1.0)

    assert time.process_time() - start < 2
    assert actual == (1, 1)
