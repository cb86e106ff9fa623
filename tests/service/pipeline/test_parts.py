from collections.abc import Callable
from dataclasses import replace
from itertools import permutations, product

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.ndimage import map_coordinates

from service.bundle.schema import Label, ServiceConfig
from service.pipeline.grid import Grid, PartGrid
from service.pipeline.parts import box_affine, crop, part_probability_slabs, trilinear, voxels_of
from service.pipeline.predict import probabilities, segment
from service.volume import Volume

Points = npt.NDArray[np.float64]

AXES = [
    "".join(letters[n] for n, letters in zip(signs, order, strict=True))
    for order in permutations(("RL", "AP", "SI"))
    for signs in product((0, 1), repeat=3)
]
"""The 48 orientations that a bundle may declare."""


def turned(degrees: float) -> Points:
    """Return a rotation about an oblique axis."""
    axis = np.array([1, 2, 3]) / np.sqrt(14)
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    angle = np.radians(degrees)
    rotation: Points = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    return rotation


def affine_of(linear: Points, offset: tuple[float, float, float]) -> Points:
    """Return a 4 x 4 affine."""
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = linear, offset
    return affine


def ramps(shape: tuple[int, int, int], affine: Points) -> Volume:
    """Return a volume whose three channels hold x, y and z in millimetres at each voxel."""
    mm = affine[:3, :3] @ np.indices(shape).reshape(3, -1) + affine[:3, 3:]
    return Volume(mm.reshape(3, *shape).astype(np.float32), affine, b"")


@pytest.mark.parametrize("orientation", AXES)
@pytest.mark.parametrize(
    "scan", [np.diag([-0.9, 1.1, 1.3]), turned(20) @ np.diag([1.0, 1, 2])], ids=["flipped", "turned"]
)
def test_a_crop_shows_what_lies_at_its_place(orientation: str, scan: Points, tiny_config: ServiceConfig) -> None:
    """Each voxel of the box holds its own position in the patient, for all axes of scan, head and bundle."""
    config = tiny_config.model_copy(update={"orientation": orientation, "spacing_mm": (1.0, 1.5, 0.5)})
    volume = ramps((40, 40, 40), affine_of(scan, (3, -2, 5)))
    centre = volume.affine[:3, :3] @ [20, 20, 20] + volume.affine[:3, 3]
    shape = voxels_of((6, 9, 12), config)
    affine = box_affine(centre, turned(-10), shape, config)

    seen, inside = crop(volume, affine, shape)

    expected = affine[:3, :3] @ np.indices(shape).reshape(3, -1) + affine[:3, 3:]
    assert inside == 1
    assert np.abs(seen.array_CDHW.reshape(3, -1).astype(np.float64) - expected).max() < 1e-4
    # The first axis runs in the head's direction that the orientation names first.
    direction = turned(-10).T @ (affine[:3, 0] / np.linalg.norm(affine[:3, 0]))
    assert direction[
        ["RL", "AP", "SI"].index(next(p for p in ("RL", "AP", "SI") if orientation[0] in p))
    ] == pytest.approx(1 if orientation[0] in "RAS" else -1)


def test_the_fraction_of_a_box_inside_the_scan_is_returned(tiny_config: ServiceConfig) -> None:
    """Half of the box lies outside, where the last plane is repeated."""
    volume = ramps((10, 10, 10), np.eye(4))
    affine = box_affine(np.array([9.5, 4.5, 4.5]), np.eye(3), (8, 8, 8), tiny_config)

    seen, inside = crop(volume, affine, (8, 8, 8))

    assert inside == 0.5
    assert (seen.array_CDHW[0, 4:] == 9).all()


def test_a_crop_keeps_the_declared_padding_in_it(tiny_config: ServiceConfig) -> None:
    """Where more than half of a voxel is padding, it is padding; a box without any has none."""
    volume = ramps((10, 10, 10), np.eye(4))
    padding = np.zeros((10, 10, 10), bool)
    padding[:4] = True
    volume = replace(volume, padding=padding)

    seen, _ = crop(volume, box_affine(np.array([4.3, 4.5, 4.5]), np.eye(3), (8, 8, 8), tiny_config), (8, 8, 8))
    beyond, _ = crop(volume, box_affine(np.array([7.0, 4.5, 4.5]), np.eye(3), (3, 8, 8), tiny_config), (3, 8, 8))

    assert seen.padding is not None
    np.testing.assert_array_equal(seen.padding, seen.array_CDHW[0] < 3.5)
    assert beyond.padding is None


@pytest.fixture(name="located")
def _located(tiny_config: ServiceConfig) -> ServiceConfig:
    labels = [Label(value=v, name=f"label {v}", color=(v, v, v)) for v in (0, 11, 12, 21, 22)]
    return tiny_config.model_copy(update={"labels": labels, "temperature": [1.0, 2.0, 0.5, 2.0, 0.5]})


@pytest.fixture(name="parts")
def _parts() -> tuple[PartGrid, ...]:
    """Return two boxes that overlap a little, the second one rotated."""
    first = affine_of(np.diag([0.5, 0.8, 1.0]), (-1, -2, -1))
    second = affine_of(turned(15) * 0.9, (-11, 1, -1))
    return PartGrid((0, 1, 2), first, (6, 7, 8)), PartGrid((0, 3, 4), second, (9, 8, 7))


def test_parts_are_pasted_where_they_lie(located: ServiceConfig, parts: tuple[PartGrid, ...]) -> None:
    """Probabilities agree with scipy's interpolation and a float64 softmax, voxel by voxel; elsewhere is background."""
    shape = (20, 12, 10)
    torch.manual_seed(0)
    logits = [torch.randn(3, *part.shape) * 3 for part in parts]
    expected = np.zeros((5, *shape))
    expected[0] = 1
    taken = np.zeros(shape, bool)
    for part, of_part in zip(parts, logits, strict=True):
        for index in np.ndindex(shape):
            at = part.to_part[:3, :3] @ index + part.to_part[:3, 3]
            if taken[index] or (at < -0.5).any() or (at >= np.array(part.shape) - 0.5).any():
                continue
            taken[index] = True
            at = np.clip(at, 0, np.array(part.shape) - 1)[:, None]
            values = np.array([map_coordinates(c.double().numpy(), at, order=1)[0] for c in of_part])
            p = np.exp(values / np.array([1.0, 2.0, 0.5]))
            expected[(slice(None), *index)] = 0
            expected[(list(part.channels), *index)] = p / p.sum()

    slabs = list(part_probability_slabs(logits, parts, shape, located, 10**9))

    actual = np.concatenate([probs for _, probs in slabs], axis=1)
    assert 100 < taken.sum() < taken.size
    assert np.abs(actual - expected).max() < 1e-5


def test_the_thickness_of_a_slab_changes_nothing(located: ServiceConfig, parts: tuple[PartGrid, ...]) -> None:
    """Slabs of any thickness give the same bits."""
    logits = torch.randn(2, 3, 9, 8, 8)
    same = tuple(PartGrid(part.channels, part.to_part, (9, 8, 8)) for part in parts)

    def whole(values: int) -> npt.NDArray[np.float32]:
        slabs = part_probability_slabs(logits, same, (20, 12, 10), located, values)
        return np.concatenate([probs for _, probs in slabs], axis=1)

    assert np.array_equal(whole(1), whole(10**9))


@pytest.mark.parametrize("orientation", [[[0, 1], [1, 1], [2, 1]], [[2, -1], [0, 1], [1, -1]]], ids=["as is", "turned"])
def test_only_voxels_inside_parts_are_computed(
    located: ServiceConfig, parts: tuple[PartGrid, ...], orientation: list[list[int]]
) -> None:
    """Mask and confidence are argmax and maximum of the pasted probabilities, bit for bit, also where parts overlap."""
    logits = torch.randn(2, 3, 9, 8, 8, generator=torch.Generator().manual_seed(2)).half()
    same = tuple(PartGrid(part.channels, part.to_part, (9, 8, 8)) for part in parts)
    oriented = (20, 12, 10)
    scan_shape = tuple(oriented[axis] for axis, _ in orientation)
    grid = Grid(scan_shape, np.array(orientation, float), oriented, oriented, (1, 1, 1), same)
    values = np.array([label.value for label in located.labels])

    actual, probs = segment(logits, grid, located), probabilities(logits, grid, located)

    assert (actual.mask > 0).any()
    assert np.array_equal(actual.mask, values[probs.argmax(axis=0)])
    assert np.array_equal(actual.confidence, probs.max(axis=0))


@pytest.mark.gpu
def test_a_gpu_pastes_alike(located: ServiceConfig, parts: tuple[PartGrid, ...], gpu_device: torch.device) -> None:
    """Parts whose logits lie on the device lead to the same voxels."""
    logits = torch.randn(2, 3, 9, 8, 8, generator=torch.Generator().manual_seed(2)).half()
    same = tuple(PartGrid(part.channels, part.to_part, (9, 8, 8)) for part in parts)
    upright = np.array([[0, 1], [1, 1], [2, 1]], float)
    grid = Grid((20, 12, 10), upright, (20, 12, 10), (20, 12, 10), (1, 1, 1), same)

    actual, expected = segment(logits.to(gpu_device), grid, located), segment(logits, grid, located)

    assert np.mean(actual.mask != expected.mask) < 1e-3
    np.testing.assert_allclose(actual.confidence, expected.confidence, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(4, 5, 6), (1, 5, 6), (4, 1, 1)])
def test_trilinear_holds_its_edge(
    shape: tuple[int, int, int], make_places: Callable[[tuple[int, int, int]], Points]
) -> None:
    """Interpolation agrees with scipy's, with the nearest value beyond the edge."""
    array = torch.rand(2, *shape)
    at = make_places(shape)

    actual = trilinear(array.half(), at).numpy()

    inside = np.clip(at, 0, np.array(shape)[:, None] - 1)
    expected = [map_coordinates(c.half().double().numpy(), inside, order=1, mode="nearest") for c in array]
    assert np.abs(actual - np.array(expected)).max() < 1e-5


@pytest.fixture(name="make_places")
def _make_places() -> Callable[[tuple[int, int, int]], Points]:
    def places(shape: tuple[int, int, int]) -> Points:
        generator = np.random.default_rng(0)
        random: Points = generator.uniform(-1.5, np.array(shape)[:, None] + 0.5, (3, 200))
        return random

    return places
