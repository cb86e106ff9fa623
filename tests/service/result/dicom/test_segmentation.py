import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import highdicom as hd
import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from pydicom import uid
from pydicom.dataset import Dataset

from service.intake.dicom.series import decode
from service.intake.dicom.source import SourceSeries
from service.result.dicom.objects import write_objects
from service.result.dicom.outcome import Outcome
from service.result.dicom.segmentation import BAND_EDGES, make_bands, make_label_map, make_segmentation
from service.schemas import Superseded
from service.volume import Volume
from tests.dicom_checks import faults_of, labels_by_place
from tests.dicom_series import series_of_array, zip_of_series

Changed = Callable[..., Outcome]
VALUES = np.array([0, 11, 12, 21])
"""Label values by segment number."""


def saved(made: Dataset) -> Dataset:
    """Write an object and read it back."""
    file = io.BytesIO()
    made.save_as(file, enforce_file_format=True)
    file.seek(0)
    return pydicom.dcmread(file)


def test_the_mask_lies_where_the_patient_lies(outcome: Outcome, volume: Volume, mask: npt.NDArray[np.uint8]) -> None:
    """Every pixel of an oblique series has the right coordinates; empty planes have no frame."""
    made = saved(make_segmentation(outcome))

    np.testing.assert_array_equal(VALUES[labels_by_place(made, volume.affine, mask.shape)], mask)
    assert made.NumberOfFrames == 3 + 4


@pytest.mark.parametrize("flip", [np.diag([1.0, 1, -1, 1]), np.diag([-1.0, 1, 1, 1])], ids=["k", "i"])
def test_a_left_handed_grid_keeps_its_place(
    flip: npt.NDArray[np.float64], outcome: Outcome, affine: npt.NDArray[np.float64], mask: npt.NDArray[np.uint8]
) -> None:
    """If the volume's k runs against the order of the files, the mask follows the volume."""
    array = np.arange(mask.size, dtype=np.int16).reshape(mask.shape)
    volume = decode(io.BytesIO(zip_of_series(series_of_array(array, affine @ flip))))
    assert volume.source is not None
    flipped = replace(outcome, source=SourceSeries.model_validate_json(volume.source))

    actual = labels_by_place(saved(make_segmentation(flipped)), volume.affine, mask.shape)

    np.testing.assert_array_equal(VALUES[actual], mask)


def test_highdicom_reads_the_same_volume(outcome: Outcome, volume: Volume, mask: npt.NDArray[np.uint8]) -> None:
    """Highdicom's reader puts every voxel at the same place in the patient."""
    actual = hd.seg.Segmentation.from_dataset(saved(make_segmentation(outcome))).get_volume(combine_segments=True)
    index = np.argwhere(actual.array > 0)
    lps = (actual.affine @ np.c_[index, np.ones(len(index))].T)[:3]
    ras = np.diag([-1.0, -1, 1]) @ lps
    places = np.rint((np.linalg.inv(volume.affine) @ np.vstack([ras, np.ones(len(index))]))[:3]).astype(int)

    placed = np.zeros_like(mask)
    placed[tuple(places)] = VALUES[actual.array[tuple(index.T)]]
    np.testing.assert_array_equal(placed, mask)


def test_segments_are_described(outcome: Outcome) -> None:
    """Segments have names, codes with modifiers, the bundle's colours, and the model's hashes."""
    first, second, third = saved(make_segmentation(outcome)).SegmentSequence

    code = first.SegmentedPropertyTypeCodeSequence[0]
    assert (first.SegmentLabel, code.CodeValue, code.CodeMeaning) == ("left hippocampus", "5366008", "Hippocampus")
    modifiers = [item.CodeMeaning for item in code.SegmentedPropertyTypeModifierCodeSequence]
    assert modifiers == ["Left", "Anterior"]
    assert second.SegmentedPropertyCategoryCodeSequence[0].CodeMeaning == "Morphologically Abnormal Structure"
    assert third.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Tissue"
    color = hd.color.CIELabColor.from_dicom_value(first.RecommendedDisplayCIELabValue).to_rgb(clip=True)
    np.testing.assert_allclose(color, (230, 159, 0), atol=1)
    (algorithm,) = first.SegmentationAlgorithmIdentificationSequence
    assert algorithm.AlgorithmParameters == f"bundle={'b' * 64},weights={'w' * 64},card={'c' * 64}"


@pytest.mark.parametrize("make", [make_segmentation, make_label_map, make_bands])
@pytest.mark.filterwarnings("ignore:The number of bytes of compressed pixel data")  # of frames this small
def test_a_withdrawn_mask_says_so_wherever_a_viewer_shows_its_name(
    make: Callable[[Outcome], Dataset], withdrawn: Outcome
) -> None:
    """The series description and the label of every segment begin with the mark, within 64 characters."""
    made = saved(make(replace(withdrawn, supersedes=Superseded(series_instance_uid="1.2", sop_instance_uid="1.3"))))

    texts = [made.SeriesDescription, *(segment.SegmentLabel for segment in made.SegmentSequence[-3:])]
    assert len(texts) == 4
    assert all(text.startswith("WITHDRAWN: ") and len(text) <= 64 for text in texts)


def test_every_instance_is_referred_to(outcome: Outcome, series: list[Dataset]) -> None:
    """The object refers to all instances of the series, and each frame to its slice."""
    made = saved(make_segmentation(outcome))
    (referenced,) = made.ReferencedSeriesSequence

    assert referenced.SeriesInstanceUID == series[0].SeriesInstanceUID
    instances = [item.ReferencedSOPInstanceUID for item in referenced.ReferencedInstanceSequence]
    assert sorted(instances) == sorted(image.SOPInstanceUID for image in series)
    places = {image.SOPInstanceUID: [float(mm) for mm in image.ImagePositionPatient] for image in series}
    for frame in made.PerFrameFunctionalGroupsSequence:
        source = frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        np.testing.assert_allclose(frame.PlanePositionSequence[0].ImagePositionPatient, places[source])


def test_frames_of_an_enhanced_instance_are_referred_to_by_number(outcome: Outcome) -> None:
    """The instance is named once, and each frame of the mask gives the number of its source frame."""
    slices = [
        source.model_copy(update={"instance": "1.2.3", "sop_class": uid.EnhancedMRImageStorage, "frame": 8 - k})
        for k, source in enumerate(outcome.source.slices)
    ]
    made = saved(make_segmentation(replace(outcome, source=outcome.source.model_copy(update={"slices": slices}))))

    assert len(made.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == 1
    numbers = [
        frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber
        for frame in made.PerFrameFunctionalGroupsSequence
    ]
    assert sorted(numbers) == sorted([8 - k for k in (2, 3, 4)] + [8 - k for k in (3, 4, 5, 6)])


def test_an_empty_mask_is_a_result(outcome: Outcome, mask: npt.NDArray[np.uint8], tmp_path: Path) -> None:
    """Each segment has a frame of zeros, all instances are referred to, and the object is valid."""
    empty = replace(outcome, mask_KRC=np.zeros_like(mask.T))
    write_objects(empty, tmp_path, ["seg", "bands", "labelmap", "sr", "sc"])
    made = pydicom.dcmread(tmp_path / "seg.dcm")

    assert made.NumberOfFrames == 3
    assert len(made.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == 8
    assert not made.pixel_array.any()
    assert faults_of(tmp_path / "seg.dcm") == []


@pytest.mark.filterwarnings("ignore:The number of bytes of compressed pixel data")  # of frames this small
def test_a_label_map_is_the_same_mask(outcome: Outcome, mask: npt.NDArray[np.uint8]) -> None:
    """It is RLE-compressed, and segment 0 is the background."""
    made = saved(make_label_map(outcome))

    assert made.file_meta.TransferSyntaxUID == uid.RLELossless
    assert made.SOPClassUID == "1.2.840.10008.5.1.4.1.1.66.7"
    actual = hd.seg.Segmentation.from_dataset(made).get_volume(combine_segments=True)
    assert {int(n): int((actual.array == n).sum()) for n in (1, 2, 3)} == {
        n: int((mask == VALUES[n]).sum()) for n in (1, 2, 3)
    }


def test_bands_divide_the_mask_by_its_confidence(outcome: Outcome, volume: Volume) -> None:
    """Each voxel of the mask is in the band of its confidence; other voxels are in no band."""
    made = saved(make_bands(outcome))
    actual = labels_by_place(made, volume.affine, volume.shape)

    confidence = outcome.confidence_KRC.T / 255
    expected = np.where(outcome.mask_KRC.T > 0, 1 + (confidence >= BAND_EDGES[0]) + (confidence >= BAND_EDGES[1]), 0)
    np.testing.assert_array_equal(actual, expected)
    assert [item.SegmentLabel for item in made.SegmentSequence] == [
        "confidence 0 to 0.7",
        "confidence 0.7 to 0.9",
        "confidence 0.9 to 1",
    ]
    schemes = [item.SegmentedPropertyTypeCodeSequence[0].CodingSchemeDesignator for item in made.SegmentSequence]
    assert schemes == ["99CALIBRANT"] * 3
    assert made.CodingSchemeIdentificationSequence[0].CodingSchemeDesignator == "99CALIBRANT"
