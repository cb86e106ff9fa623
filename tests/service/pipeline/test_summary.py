from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from service.bundle.acceptance import Judgement
from service.bundle.description import BundleDescription, describe_bundle
from service.bundle.registry import SHIPPED
from service.bundle.statement import statement_about, statement_of
from service.calibration.shift import ShiftVerdict
from service.intake.decode import decode_scan
from service.pipeline.centre import Placed, Placement
from service.pipeline.grid import Grid
from service.pipeline.predict import Segmentation
from service.pipeline.summary import findings_about, sizes_of, summarise
from service.schemas import Statement, Summary
from service.volume import VOXEL_SIZE, Volume


@pytest.fixture(name="summary_of")
def summary_of_(tiny_bundle: Path) -> Callable[..., Summary]:
    """Return the function that summarises a mask and its confidence for a voxel size."""
    bundle = describe_bundle(tiny_bundle)

    def summary_of(
        mask: npt.NDArray[np.uint8], confidence: npt.NDArray[np.float32], spacing: tuple[float, ...] = (1, 1, 1)
    ) -> Summary:
        volume = Volume(mask[np.newaxis], np.diag([*spacing, 1.0]), b"", ("a warning",))
        segmentation = Segmentation(mask, confidence)
        return summarise(segmentation, volume, bundle, statement_about(bundle.card))

    return summary_of


@pytest.fixture
def shipped() -> BundleDescription:
    """Return the shipped bundle."""
    return describe_bundle(SHIPPED / "hippocampus-mr")


def statement_for(
    shape: tuple[int, int, int], affine: npt.NDArray[np.float64], bundle: BundleDescription, *doubts: str
) -> Statement:
    """Return the statement for a grid on which the answer is like those of the card's persons."""
    volume = Volume(np.broadcast_to(np.uint8(0), (1, *shape)), affine, b"")
    alike = ShiftVerdict(p=1.0, n_persons=19)
    judgement = Judgement(withdrawn=doubts)
    grid = Grid.of(volume, bundle.config)
    findings = findings_about(bundle.card, sizes_of(volume, grid), judgement, alike, located=False)
    return statement_of(bundle.card, bundle.card.measurements[0], findings)


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


def test_sizes_follow_the_axes_of_the_model(shipped: BundleDescription) -> None:
    """A scan stored as (S, R, A), 3 x 5 x 7 voxels of 4 x 1 x 2 mm, measures 5 x 14 x 12 mm along RAS."""
    affine = np.array([[0, 1, 0, 0], [0, 0, -2, 0], [4, 0, 0, 0], [0, 0, 0, 1]], np.float64)
    volume = Volume(np.zeros((1, 3, 5, 7), np.uint8), affine, b"")

    sizes = sizes_of(volume, Grid.of(volume, shipped.config))

    assert sizes == {
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
        statement = statement_for(volume.shape, volume.affine, shipped)
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
    statement = statement_for(shape, np.diag([mm, mm, mm, 1.0]), shipped)

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


def test_every_structure_of_a_withdrawn_answer_is_marked(tiny_bundle: Path) -> None:
    """The mark stands beside the volume, whichever table that ends up in."""
    bundle = describe_bundle(tiny_bundle)
    mask = np.zeros((3, 3, 3), np.uint8)
    volume = Volume(mask[np.newaxis], np.eye(4), b"")
    doubtful = statement_for((3, 3, 3), np.eye(4), bundle, "A reason")

    for statement, marked in ((doubtful, True), (statement_about(bundle.card), False)):
        summary = summarise(Segmentation(mask, np.ones(mask.shape, np.float32)), volume, bundle, statement)
        assert [structure.withdrawn for structure in summary.structures] == [marked, marked]
        assert summary.statement.status == ("withdrawn" if marked else "holds")


def test_a_file_with_two_voxel_sizes_states_no_volume(tiny_bundle: Path) -> None:
    """Every volume is withheld; nothing is called cut off."""
    bundle = describe_bundle(tiny_bundle)
    mask = np.zeros((12, 12, 12), np.uint8)
    mask[5:7, 5:7, 5:7] = 1
    volume = Volume(mask[np.newaxis], np.eye(4), b"", doubts=(VOXEL_SIZE,))

    summary = summarise(
        Segmentation(mask, np.ones(mask.shape, np.float32)), volume, bundle, statement_about(bundle.card)
    )

    assert [(one.volume_ml, one.truncated, one.volume_text) for one in summary.structures] == [
        (None, False, "withheld")
    ] * 2


def test_a_part_that_was_not_found_is_not_cut_off(shipped: BundleDescription) -> None:
    """Its structures are not found: no volume, no confidence, and nothing is said of the border."""
    located = shipped.config.located.labels
    mask = np.zeros((30, 30, 30), np.uint8)
    mask[10:15, 10:15, 10:15] = located[1].value
    mask[15:20, 10:15, 10:15] = located[2].value
    volume = Volume(mask[np.newaxis], np.eye(4), b"")
    locator = shipped.config.locator
    assert locator is not None
    part = Placed(locator.parts[0], volume, (0, 1, 2))
    placement = Placement((part,), {locator.parts[1].name: "80% of its box lies in the scan"})

    summary = summarise(
        Segmentation(mask, np.ones(mask.shape, np.float32)), volume, shipped, statement_about(shipped.card), placement
    )

    assert [one.label for one in summary.structures] == [label.value for label in located[1:]]
    assert [(one.found, one.truncated, one.volume_text) for one in summary.structures] == [
        (True, False, "0.12 ml"),
        (True, False, "0.12 ml"),
        (False, False, "not found"),
        (False, False, "not found"),
    ]


def test_a_label_that_may_lie_beyond_the_border_is_cut_off(summary_of: Callable[..., Summary]) -> None:
    """Nothing of the second structure is in the scan, and the first reaches the border."""
    mask = np.zeros((30, 30, 30), np.uint8)
    mask[10:15, 10:15, 28:] = 1

    front, back = summary_of(mask, np.ones(mask.shape, np.float32)).structures

    assert (front.truncated, back.truncated, back.volume_text) == (True, True, "cut off")
