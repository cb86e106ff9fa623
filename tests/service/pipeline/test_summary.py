from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from scipy.ndimage import binary_dilation

from service.bundle.description import BundleDescription, describe_bundle
from service.bundle.registry import SHIPPED
from service.intake.decode import decode_scan
from service.pipeline.grid import Grid
from service.pipeline.predict import Segmentation
from service.pipeline.summary import features_of, labels_at_border, summarise, widened
from service.schemas import Summary
from service.volume import Volume


@pytest.fixture(name="summary_of")
def summary_of_(tiny_bundle: Path) -> Callable[..., Summary]:
    """Return the function that summarises a mask and its confidence for a voxel size."""
    bundle = describe_bundle(tiny_bundle)

    def summary_of(
        mask: npt.NDArray[np.uint8], confidence: npt.NDArray[np.float32], spacing: tuple[float, ...] = (1, 1, 1)
    ) -> Summary:
        volume = Volume(mask[np.newaxis], np.diag([*spacing, 1.0]), b"", ("a warning",))
        segmentation = Segmentation(mask, confidence)
        return summarise(segmentation, volume, Grid.of(volume, bundle.config), bundle, bundle.card.measurements[0])

    return summary_of


@pytest.fixture
def shipped() -> BundleDescription:
    """Return the shipped bundle."""
    return describe_bundle(SHIPPED / "hippocampus-mr")


def summary_of_grid(shape: tuple[int, int, int], affine: npt.NDArray[np.float64], bundle: BundleDescription) -> Summary:
    """Summarise an empty mask on a grid."""
    volume = Volume(np.broadcast_to(np.uint8(0), (1, *shape)), affine, b"")
    segmentation = Segmentation(np.zeros(shape, np.uint8), np.ones(shape, np.float32))
    return summarise(segmentation, volume, Grid.of(volume, bundle.config), bundle, bundle.card.measurements[0])


def test_structures_are_counted_by_hand(summary_of: Callable[..., Summary]) -> None:
    """Three voxels of 1 x 2 x 4 mm are 0.024 ml; their mean confidence is (0.5 + 0.7 + 0.9) / 3."""
    mask, confidence = np.zeros((4, 4, 4), np.uint8), np.ones((4, 4, 4), np.float32)
    mask[1:3, 1:3, 1:3] = np.array([1, 1, 1, 2, 0, 0, 0, 0]).reshape(2, 2, 2)
    confidence[1:3, 1:3, 1:3] = np.array([0.5, 0.7, 0.9, 0.6, 1, 1, 1, 1]).reshape(2, 2, 2)

    summary = summary_of(mask, confidence, (1, 2, 4))

    front, back = summary.structures
    assert (front.label, front.name, front.voxels) == (1, "front", 3)
    assert front.volume_ml == pytest.approx(0.024)
    assert front.mean_confidence == pytest.approx(0.7)
    assert (back.label, back.name, back.voxels) == (2, "back", 1)
    assert back.volume_ml == pytest.approx(0.008)
    assert back.mean_confidence == pytest.approx(0.6)
    assert summary.foreground_confidence == pytest.approx((0.5 + 0.7 + 0.9 + 0.6) / 4)


def test_a_structure_that_was_not_found_has_no_confidence(summary_of: Callable[..., Summary]) -> None:
    """Its volume is 0, and its mean confidence is null rather than NaN, which JSON lacks."""
    summary = summary_of(np.zeros((2, 2, 2), np.uint8), np.ones((2, 2, 2), np.float32))

    assert [(structure.voxels, structure.volume_ml, structure.mean_confidence) for structure in summary.structures] == [
        (0, 0, None)
    ] * 2
    assert summary.foreground_confidence is None
    assert "NaN" not in summary.model_dump_json()


def test_a_summary_names_its_model_and_its_limits(summary_of: Callable[..., Summary], tiny_bundle: Path) -> None:
    """A summary holds the model's identity, the file's warnings and the sentence on research use."""
    summary = summary_of(np.ones((2, 2, 2), np.uint8), np.ones((2, 2, 2), np.float32))

    assert summary.model == describe_bundle(tiny_bundle).identity
    assert summary.warnings == ["a warning"]
    assert "research use only" in summary.research_use_only


def test_features_follow_the_axes_of_the_model(shipped: BundleDescription) -> None:
    """A scan stored as (S, R, A), 3 x 5 x 7 voxels of 4 x 1 x 2 mm, measures 5 x 14 x 12 mm along RAS."""
    affine = np.array([[0, 1, 0, 0], [0, 0, -2, 0], [4, 0, 0, 0], [0, 0, 0, 1]], np.float64)
    volume = Volume(np.zeros((1, 3, 5, 7), np.uint8), affine, b"")

    features = features_of(volume, Grid.of(volume, shipped.config))

    assert features == {
        "extent_mm_1": 5,
        "extent_mm_2": 14,
        "extent_mm_3": 12,
        "spacing_mm_1": 1,
        "spacing_mm_2": 2,
        "spacing_mm_3": 4,
    }


def test_the_statement_holds_for_scans_like_the_cards(shipped: BundleDescription, hippocampus: Path) -> None:
    """Real scans like the card's cases lie within its range and get its figures."""
    paths = sorted((hippocampus / "imagesTr").glob("hippocampus_*.nii.gz"))
    assert len(paths) >= 10

    for path in paths[:: len(paths) // 10]:
        volume = decode_scan(path)
        statement = summary_of_grid(volume.shape, volume.affine, shipped).statement
        assert (statement.status, statement.reasons) == ("holds", [])
        assert statement.figures is not None


@pytest.mark.parametrize(
    ("shape", "mm"),
    [((188, 256, 190), 0.88), ((256, 256, 256), 1.0), ((35, 50, 36), 0.5), ((35, 50, 36), 2.0)],
    ids=str,
)
def test_the_statement_is_withdrawn_for_other_scans(
    shape: tuple[int, int, int], mm: float, shipped: BundleDescription
) -> None:
    """For a whole head and for crops of other voxel sizes there are reasons instead of figures."""
    statement = summary_of_grid(shape, np.diag([mm, mm, mm, 1.0]), shipped).statement

    assert statement.status == "withdrawn"
    assert len(statement.reasons) >= 3
    assert statement.figures is None
    assert "DSC" not in statement.text


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("plane", [0, -1])
def test_a_structure_at_the_border_has_no_volume(summary_of: Callable[..., Summary], axis: int, plane: int) -> None:
    """A structure with a voxel in one of the outermost planes may continue outside, so its volume is null."""
    mask = np.zeros((4, 5, 6), np.uint8)
    mask[1:3, 1:4, 1:5] = 2
    face = [2, 2, 2]
    face[axis] = plane
    mask[tuple(face)] = 1

    front, back = summary_of(mask, np.ones(mask.shape, np.float32)).structures

    assert (front.truncated, front.volume_ml, front.voxels) == (True, None, 1)
    assert not back.truncated
    assert back.volume_ml == pytest.approx(back.voxels / 1000)


def test_labels_of_the_planes_next_to_the_border_are_whole() -> None:
    """A structure that ends one voxel before the border is whole."""
    mask = np.zeros((4, 4, 4), np.uint8)
    mask[1:3, 1:3, 1:3] = 3

    assert labels_at_border(mask) == {0}


def test_the_histogram_counts_each_voxel_of_the_mask(summary_of: Callable[..., Summary]) -> None:
    """Bins are right-closed like the card's: 0.5 is in bin 9, 0.501 in bin 10 and 1 in bin 19."""
    mask, confidence = np.zeros((3, 3, 6), np.uint8), np.full((3, 3, 6), 0.4, np.float32)
    mask[1, 1, 1:5] = 1
    confidence[1, 1, 1:5] = [0.5, 0.501, 1, 1]

    front, back = summary_of(mask, confidence).structures

    expected = [0] * 20
    expected[9], expected[10], expected[19] = 1, 1, 2
    assert front.confidence_histogram == expected
    assert back.confidence_histogram == [0] * 20


def test_the_fifth_percentile_is_numpys(summary_of: Callable[..., Summary]) -> None:
    """It is 0.51 for 0.50, 0.51 .. 0.70, and null for a structure without voxels."""
    mask, confidence = np.zeros((3, 3, 23), np.uint8), np.ones((3, 3, 23), np.float32)
    mask[1, 1, 1:22] = 1
    confidence[1, 1, 1:22] = np.linspace(0.5, 0.7, 21)

    front, back = summary_of(mask, confidence).structures

    assert front.p5_confidence == pytest.approx(0.51)
    assert back.p5_confidence is None


def test_the_expected_accuracy_is_that_of_the_foreground_and_two_voxels_around(
    summary_of: Callable[..., Summary],
) -> None:
    """It is the mean over the 5 x 5 x 5 voxels around a foreground voxel, and excludes the certain background."""
    mask, confidence = np.zeros((9, 9, 9), np.uint8), np.ones((9, 9, 9), np.float32)
    mask[4, 4, 4] = 1
    confidence[2:7, 2:7, 2:7] = 0.9
    confidence[4, 4, 4] = 0.4

    expected = summary_of(mask, confidence).expected_accuracy

    assert expected is not None
    assert expected.value == pytest.approx((124 * 0.9 + 0.4) / 125)
    assert (expected.voxels, expected.margin_voxels) == (125, 2)
    assert expected.basis == "the model's own probabilities"


def test_without_foreground_nothing_is_expected(summary_of: Callable[..., Summary]) -> None:
    """An empty mask has no expected accuracy."""
    assert summary_of(np.zeros((3, 3, 3), np.uint8), np.ones((3, 3, 3), np.float32)).expected_accuracy is None


@pytest.mark.parametrize("voxels", [1, 2, 7])
def test_masks_are_widened_as_scipy_does_it(voxels: int) -> None:
    """The result is scipy's dilation by a cube, even if the cube is larger than the image."""
    mask = np.random.default_rng(3).random((6, 5, 4)) < 0.03

    expected = binary_dilation(mask, np.ones((2 * voxels + 1,) * 3))

    assert mask.any()
    assert np.array_equal(widened(mask, voxels), expected)
