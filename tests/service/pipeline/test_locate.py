from collections.abc import Callable
from dataclasses import replace
from itertools import permutations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn
from torch.nn.functional import max_pool3d

from service.bundle.schema import Label, Landmark, Locator, Network, Part
from service.errors import AnatomyNotFound
from service.pipeline.locate import (
    CELLS,
    Landmarks,
    Pose,
    along,
    averaged,
    boxes_of,
    coarse,
    degrees_between,
    fit_pose,
    landmarks_of,
    locate,
    padded,
    share_inside,
    shows_more,
)
from service.volume import Volume

Points = npt.NDArray[np.float64]

PLACES = [
    (-40, -20, -10),
    (40, -20, -10),
    (-15, -15, 25),
    (15, -15, 25),
    (0, -25, -35),
    (-25, -60, -40),
    (25, -60, -40),
]
EDGE_MM = 24.0


@pytest.fixture(name="locator")
def _locator() -> Locator:
    """Return a locator of seven cubes of 24 mm; the first two are parts."""
    names = ["left", "right", *"cdefg"]
    return Locator(
        anatomy="cube",
        extent_mm=(60, 60, 60),
        network=Network(name="UNet", arguments={"strides": [2, 2]}),
        spacing_mm=4.0,
        landmarks=[
            Landmark(name=name, centre_mm=place, usual_ml=13, volume_ml=(0.2, 20))
            for name, place in zip(names, PLACES, strict=True)
        ],
        least_landmarks=5,
        residual_mm=4.0,
        scale=(0.7, 1.4),
        parts=[
            Part(
                name=name,
                landmark=name,
                shift_mm=(0, 5, 0),
                search_mm=(20, 20, 20),
                size_mm=(16, 16, 16),
                labels=[Label(value=value, name=name, color=(0, 0, 0))],
            )
            for name, value in (("left", 11), ("right", 21))
        ],
    )


class ByIntensity(nn.Module):
    """A network that marks channel c where the intensity is c tenths in the whole neighbourhood."""

    def __init__(self) -> None:
        super().__init__()
        self.levels = nn.Parameter(torch.arange(1, len(PLACES) + 1) / 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return logits, (1, channels, D, H, W)."""
        highest, lowest = max_pool3d(image, 3, 1, 1), -max_pool3d(-image, 3, 1, 1)
        levels = self.levels.view(1, -1, 1, 1, 1)
        marked = ((highest - levels).abs() < 0.04) & ((lowest - levels).abs() < 0.04)
        return torch.cat([(~marked.any(dim=1, keepdim=True)).float(), marked.float()], dim=1) * 20


def turned(x: float, y: float, z: float) -> Points:
    """Return the rotation by these degrees about each axis, one after another."""
    rotation = np.eye(3)
    for axis, degrees in enumerate((x, y, z)):
        angle, (a, b) = np.radians(degrees), [other for other in range(3) if other != axis]
        one = np.eye(3)
        one[a, a] = one[b, b] = np.cos(angle)
        one[a, b], one[b, a] = -np.sin(angle), np.sin(angle)
        rotation = one @ rotation
    return rotation


@pytest.fixture(name="make_head")
def _make_head() -> Callable[..., Volume]:
    def make(
        rotation: Points,
        axes: tuple[int, int, int] = (0, 1, 2),
        spacing: tuple[float, float, float] = (2.0, 2.0, 2.0),
        places: list[tuple[int, int, int]] = PLACES,
        scale: float = 1.0,
    ) -> Volume:
        """Return a scan in which each place holds a cube of its own intensity."""
        shape = tuple(round(180 / mm) for mm in spacing)
        affine = np.eye(4)
        affine[:3, :3] = np.eye(3)[:, list(axes)] * np.array(spacing) * [-1, 1, -1]
        affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2) + [3, -7, 4]
        mm = affine[:3, :3] @ np.indices(shape).reshape(3, -1) + affine[:3, 3:]
        head = rotation.T @ mm / scale
        array = np.zeros(head.shape[1])
        for n, place in enumerate(places, start=1):
            array[(np.abs(head - np.array(place)[:, None]) <= EDGE_MM / 2).all(axis=0)] = n / 10
        # Percentiles need more than a few bright voxels.
        array[head[2] > np.percentile(head[2], 95)] = 1
        return Volume(array.reshape(1, *shape).astype(np.float32), affine, b"")

    return make


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1)], ids=str)
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 3.0), (2.0, 2.0, 2.0)], ids=str)
def test_the_coarse_grid_shows_each_place_where_it_lies(
    axes: tuple[int, int, int], spacing: tuple[float, float, float]
) -> None:
    """On a ramp of x + 2 y + 4 z a coarse voxel holds the value at its position, for oblique and permuted axes."""
    shape = (60, 50, 40)
    affine = np.eye(4)
    affine[:3, :3] = turned(10, 5, -15)[:, list(axes)] * np.array(spacing) * [1, -1, 1]
    mm = affine[:3, :3] @ np.indices(shape).reshape(3, -1)
    ramp = np.array([1, 2, 4]) @ mm
    volume = Volume(ramp.reshape(1, *shape).astype(np.float32), affine, b"")
    low, high = np.percentile(ramp, [0.5, 99.5])

    image, grid = coarse(volume, 4.0)

    places = grid[:3, :3] @ np.indices(tuple(image.shape[2:])).reshape(3, -1) + grid[:3, 3:]
    index = np.linalg.inv(affine[:3, :3]) @ places
    inside = ((index > 4) & (index < np.array(shape)[:, None] - 5)).all(axis=0)
    expected = (np.array([1, 2, 4]) @ places - low) / (high - low)
    middle = inside & (expected > 0.05) & (expected < 0.95)
    assert middle.sum() > 500
    # The percentiles are those of the averaged image, a little inside the scan's own.
    error = np.abs(image.numpy().ravel() - expected)[middle]
    assert error.max() < 0.03
    assert np.allclose(grid[:3, :3], np.eye(3) * 4)
    beyond = ((index < -9) | (index > np.array(shape)[:, None] + 8)).any(axis=0)
    assert not image.numpy().ravel()[beyond].any()


@pytest.mark.parametrize("angles", [(0, 0, 0), (20, 0, 0), (-10, 15, 20)], ids=str)
@pytest.mark.parametrize("axes", [(0, 1, 2), (1, 2, 0)], ids=str)
def test_boxes_lie_about_their_landmarks_along_the_axes_of_the_head(
    angles: tuple[float, float, float], axes: tuple[int, int, int], make_head: Callable[..., Volume], locator: Locator
) -> None:
    """Boxes agree within 2 mm and 3 degrees for rotated heads and permuted axes, and left stays left."""
    rotation = turned(*angles)

    boxes = locate(ByIntensity(), make_head(rotation, axes, scale=1.1), locator)

    assert [box.part.name for box in boxes.found] == ["left", "right"]
    for box, place in zip(boxes.found, PLACES, strict=False):
        expected = rotation @ (np.array(place) * 1.1 + [0, 5, 0])
        assert np.linalg.norm(box.centre_mm - expected) < 2
        between = np.degrees(np.arccos((np.trace(rotation.T @ box.axes) - 1) / 2))
        assert between < 3


def test_a_landmark_out_of_view_leaves_the_other_part(make_head: Callable[..., Volume], locator: Locator) -> None:
    """The reason for the missing part gives the volume that was marked."""
    head = make_head(np.eye(3))
    head.array_CDHW[np.isclose(head.array_CDHW, 0.2)] = 0

    boxes = locate(ByIntensity(), head, locator)

    assert [box.part.name for box in boxes.found] == ["left"]
    assert boxes.absent == {"right": "0.0 ml of it seem to be in the field of view"}


def test_without_a_landmark_of_any_part_nothing_is_found(make_head: Callable[..., Volume], locator: Locator) -> None:
    """Other landmarks do not help if those of all parts are missing."""
    head = make_head(np.eye(3))
    head.array_CDHW[np.isclose(head.array_CDHW, 0.1) | np.isclose(head.array_CDHW, 0.2)] = 0

    with pytest.raises(AnatomyNotFound, match="No cube found"):
        locate(ByIntensity(), head, locator)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda points: points[[1, 0, 3, 2, 4, 6, 5]], "landmarks lie as they should"),
        (lambda points: points * 1.6, "1.60 times the usual size"),
        (lambda points: np.random.default_rng(0).permutation(points), "landmarks lie as they should"),
        (lambda points: np.where(np.arange(7)[:, None] < 3, np.nan, points), "4 of 7 landmarks lie"),
    ],
    ids=["mirrored", "giant", "scrambled", "few"],
)
def test_what_does_not_lie_as_in_a_head_is_refused(
    change: Callable[[Points], Points], why: str, locator: Locator
) -> None:
    """Swapped sides, a wrong size, disorder and too few landmarks are refused."""
    landmarks = Landmarks(change(np.array(PLACES, float)), np.ones(7))

    with pytest.raises(AnatomyNotFound, match=why):
        fit_pose(landmarks, locator)


def test_one_landmark_far_off_is_left_out(locator: Locator) -> None:
    """The others give the exact rotation, scale and position."""
    rotation = turned(12, -20, 33)
    marked = 1.2 * np.array(PLACES) @ rotation.T + [5, 6, 7]
    marked[4] += [60, 0, 0]

    pose = fit_pose(Landmarks(marked, np.ones(7)), locator)

    assert pose.scale == pytest.approx(1.2)
    assert np.allclose(pose.rotation, rotation)
    assert np.allclose(pose.origin_mm, [5, 6, 7])
    assert pose.residual_mm < 1e-9


def test_a_box_lies_where_all_landmarks_say(locator: Locator, make_head: Callable[..., Volume]) -> None:
    """A box does not depend on its own mark; its shift is rotated and scaled with the head."""
    rotation, places = turned(10, 0, 20), np.array(PLACES, float)
    pose = Pose(1.1, rotation, np.array([3.0, -7, 4]), 0.0)
    marked = 1.1 * places @ rotation.T + pose.origin_mm
    marked[0, 2] += 30

    box, _ = boxes_of(make_head(np.eye(3)), Landmarks(marked, np.full(len(PLACES), 5.0)), pose, locator).found

    assert np.allclose(box.centre_mm, 1.1 * rotation @ (places[0] + [0, 5, 0]) + pose.origin_mm)


@pytest.mark.gpu
def test_a_gpu_finds_the_same_boxes(
    locator: Locator, make_head: Callable[..., Volume], gpu_device: torch.device
) -> None:
    """Averaging, resampling and landmarks on the device give the CPU's boxes to a tenth of a millimetre."""
    head = make_head(turned(10, -5, 20), (2, 0, 1))

    actual, expected = locate(ByIntensity().to(gpu_device), head, locator), locate(ByIntensity(), head, locator)

    assert [box.part.name for box in actual.found] == [box.part.name for box in expected.found] == ["left", "right"]
    for box, other in zip(actual.found, expected.found, strict=True):
        assert np.abs(box.centre_mm - other.centre_mm).max() < 0.1
        assert np.abs(box.axes - other.axes).max() < 0.01


@pytest.mark.gpu
def test_a_gpu_averages_alike(make_head: Callable[..., Volume], gpu_device: torch.device) -> None:
    """A scan is copied to the device as it lies in memory, in either order, and averaged there along its own axes."""
    head = make_head(turned(10, -5, 20), spacing=(1.0, 2.0, 3.0))
    turned_over = replace(head, array_CDHW=np.asfortranarray(head.array_CDHW))
    expected, affine = averaged(head, 4.0)

    for scan in (head, turned_over):
        actual, same = averaged(scan, 4.0, gpu_device)
        torch.testing.assert_close(actual.cpu(), expected, rtol=0, atol=1e-4)
        assert np.array_equal(same, affine)


def test_a_box_that_leaves_the_scan_is_named_as_absent(locator: Locator, make_head: Callable[..., Volume]) -> None:
    """A part whose box lies half outside the scan is absent, with the fraction as reason."""
    head = make_head(np.eye(3))
    pose = Pose(1.0, np.eye(3), np.array([3.0 - 90 + 40, -7, 4]), 0.0)
    landmarks = Landmarks(np.array(PLACES) + pose.origin_mm, np.full(len(PLACES), 5.0))

    boxes = boxes_of(head, landmarks, pose, locator)

    assert [box.part.name for box in boxes.found] == ["right"]
    assert boxes.absent == {"left": "50% of its box lies in the scan"}
    assert share_inside(head, boxes.found[0]) == 1


def test_a_volume_out_of_range_is_not_found(locator: Locator) -> None:
    """27 coarse voxels are an acceptable volume of a cube; 1,000 are not."""
    image = torch.zeros((1, 1, 16, 16, 32))
    image[..., 2:7, 2:7, 2:7], image[..., 2:14, 2:14, 15:27] = 0.1, 0.2

    landmarks = landmarks_of(ByIntensity(), image, np.diag([4.0, 4, 4, 1]), locator)

    assert landmarks.found.tolist() == [True, *[False] * 6]
    assert np.allclose(landmarks.centre_mm[0], 16, atol=0.1)
    assert np.allclose(landmarks.volume_ml[:2], [1.728, 64], rtol=0.01)


def test_the_angle_between_axes_is_that_of_the_turn() -> None:
    """Angles of 25, 180 and 0 degrees are computed."""
    assert degrees_between(turned(0, 25, 0), np.eye(3)) == pytest.approx(25)
    assert degrees_between(turned(180, 0, 0), np.eye(3)) == pytest.approx(180)
    assert degrees_between(np.eye(3), np.eye(3)) == 0


def test_a_mark_counts_by_the_usual_share_of_its_landmark(locator: Locator) -> None:
    """Odds of 100 for a landmark that usually fills 1/400 of the image become 1 to 4, a probability of 0.2."""

    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.odds = nn.Parameter(torch.tensor(100.0))

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            """Return the same odds for the first landmark everywhere, none for the others."""
            logits = torch.full((1, 1 + len(PLACES), *image.shape[2:]), -60.0)
            logits[:, 0], logits[:, 1] = 0, self.odds.log()
            return logits

    image = torch.zeros((1, 1, 8, 8, 8))
    image_ml = 8**3 * 4**3 / 1000
    landmarks = [
        landmark.model_copy(update={"usual_ml": image_ml / 400, "volume_ml": (0.01, 100.0)})
        for landmark in locator.landmarks
    ]

    weighted = landmarks_of(
        Constant(), image, np.diag([4.0, 4, 4, 1]), locator.model_copy(update={"landmarks": landmarks})
    )

    assert weighted.volume_ml[0] == pytest.approx(0.2 * image_ml)
    assert np.allclose(weighted.centre_mm[0], 3.5 * 4)


def test_a_crop_is_not_searched(locator: Locator) -> None:
    """A scan no longer than the training crops is not searched."""
    crop = Volume(np.zeros((1, 30, 20, 20)), np.diag([2.0, 1, 1, 1]), b"")
    more = Volume(np.zeros((1, 30, 20, 20)), np.diag([2.1, 1, 1, 1]), b"")

    assert (shows_more(crop, locator), shows_more(more, locator)) == (False, True)


def test_the_crops_size_is_that_along_the_axes_of_the_patient(locator: Locator) -> None:
    """The extent is compared along the patient's axes, for any order of the file's axes."""
    longer_ap = locator.model_copy(update={"extent_mm": (20.0, 30.0, 20.0)})
    longer_rl = locator.model_copy(update={"extent_mm": (30.0, 20.0, 20.0)})
    for order in permutations(range(3)):
        affine = np.eye(4)
        affine[:3, :3] = np.eye(3)[:, list(order)] * (-1, 1, -1)
        shape = tuple(np.array([20, 30, 20])[list(order)])
        scan = Volume(np.zeros((1, *shape)), affine, b"")
        assert (shows_more(scan, longer_ap), shows_more(scan, longer_rl)) == (False, True)


def test_a_grid_along_other_axes_shows_each_place_where_it_lies() -> None:
    """The brightest coarse voxel lies within a voxel of the bright block, and the grid has the requested axes."""
    affine = np.diag([-2.0, 2, 2, 1])
    affine[:3, 3] = 30, -70, 5
    array = np.zeros((60, 70, 50), np.float32)
    array[20:24, 40:44, 10:14] = 1
    axes = turned(20, -10, 30)

    image, grid = coarse(Volume(array[None], affine, b""), 4.0, axes)

    assert np.allclose(grid[:3, :3], axes * 4)
    brightest = np.array(np.unravel_index(int(image[0, 0].argmax()), image.shape[2:]))
    place = affine[:3, :3] @ [21.5, 41.5, 11.5] + affine[:3, 3]
    assert np.abs(np.linalg.inv(grid)[:3, :3] @ (place - grid[:3, 3]) - brightest).max() <= 1


@pytest.mark.parametrize(
    ("shape", "mm"),
    [
        ((2, 2, 2000), (2.4, 2.4, 2.4)),
        ((2, 2, 2), (2499, 2499, 0.001)),
        ((2, 2, 2), (2499, 2499, 2499)),
        ((2, 2, 30_000), (0.01, 0.01, 0.16)),
        ((2, 1000, 1000), (0.001, 5, 5)),
        ((100, 60, 100), (1, 1, 1)),
    ],
)
@pytest.mark.parametrize("multiple", [1, 16])
def test_f1_the_network_sees_no_more_than_its_cells_after_padding(
    shape: tuple[int, ...], mm: tuple[float, ...], multiple: int
) -> None:
    """The bound holds for thin and long scans, at any angle; a usual scan keeps the voxel size."""
    affine = np.diag([*mm, 1.0])
    small = torch.zeros((1, 1, *(min(n, round(max(n * edge / 4, 1))) for n, edge in zip(shape, mm, strict=True))))
    affine[:3, :3] *= np.array(shape) / np.array(small.shape[2:])
    for axes in (np.eye(3), turned(35, -20, 40)):
        image, grid = along(small, affine, 4.0, axes, multiple)

        assert padded(image, multiple).numel() <= CELLS
        assert shape != (100, 60, 100) or np.allclose(np.linalg.norm(grid[:3, :3], axis=0), 4)


def test_it_looks_again_along_the_axes_of_the_head(make_head: Callable[..., Volume], locator: Locator) -> None:
    """A rotated head is seen upright in the second or third pass; an upright head needs one pass."""
    seen: list[torch.Tensor] = []

    class Watched(ByIntensity):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            seen.append(image)
            return super().forward(image)

    locate(Watched(), make_head(rotation=np.eye(3)), locator)
    assert len(seen) == 1
    seen.clear()

    rotation = turned(0, 0, 25)
    boxes = locate(Watched(), make_head(rotation=rotation), locator)

    assert 2 <= len(seen) <= 3
    assert np.allclose(boxes.found[0].axes, rotation, atol=0.05)
    # At an angle, the outermost cubes need a longer grid.
    assert seen[0].shape != seen[1].shape
