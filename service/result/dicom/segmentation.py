"""Outcome -> segmentation objects (PS3.3 A.51, A.91): the mask as BINARY or LABELMAP, the confidence as BINARY bands."""

from typing import Final, Literal

import numpy as np
import numpy.typing as npt
from highdicom.base import SOPClass
from highdicom.color import CIELabColor
from highdicom.seg import Segmentation, SegmentDescription
from highdicom.sr import CodedConcept
from pydicom import uid
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from service.bundle.schema import Label
from service.result.dicom.codes import CONFIDENCE_BANDS, SCHEME, category_of, modifiers_of, type_of
from service.result.dicom.outcome import Outcome
from service.schemas import WITHDRAWN, DicomObject

BAND_EDGES: Final = (0.7, 0.9)
"""Lower edges of moderate and of high confidence; a person should review voxels below the first."""

_BAND_COLORS: Final = ((213, 94, 0), (240, 228, 66), (0, 158, 115))
_LABEL_LENGTH: Final = 64


def make_segmentation(outcome: Outcome) -> SOPClass:
    """Return the mask as BINARY segmentation with a segment for each structure; planes without voxels have no frame.

    If the mask is empty, each segment has one frame on the middle slice: a segmentation needs at least one frame.
    """
    return _make(outcome, "seg", outcome.segments, _segments(outcome), "BINARY")


def make_label_map(outcome: Outcome) -> SOPClass:
    """Return the mask as LABELMAP segmentation, RLE-compressed; older viewers cannot read this class."""
    return _make(outcome, "labelmap", outcome.segments, _segments(outcome), "LABELMAP")


def make_bands(outcome: Outcome) -> SOPClass:
    """Return the mask's voxels of low, moderate and high confidence as BINARY segmentation, which every viewer shows."""
    largest = np.iinfo(outcome.confidence_KRC.dtype).max
    band = np.digitize(outcome.confidence_KRC, [edge * largest for edge in BAND_EDGES]).astype(np.uint8) + 1
    bands = np.where(outcome.mask_KRC > 0, band, 0).astype(np.uint8)
    limits = ["0", *(f"{edge:g}" for edge in BAND_EDGES), "1"]
    descriptions = [
        _described(
            outcome,
            number,
            f"confidence {limits[number - 1]} to {limits[number]}",
            (codes.cid7150.SpatialAndRelationalConcept, concept),
            color,
        )
        for number, (concept, color) in enumerate(zip(CONFIDENCE_BANDS, _BAND_COLORS, strict=True), start=1)
    ]
    return _make(outcome, "bands", bands, descriptions, "BINARY")


def _make(
    outcome: Outcome,
    dicom_object: DicomObject,
    segments: npt.NDArray[np.uint8],
    descriptions: list[SegmentDescription],
    form: Literal["BINARY", "LABELMAP"],
) -> SOPClass:
    planes = slice(None)
    if not segments.any():  # highdicom would write all planes of all segments
        planes = slice(len(segments) // 2, len(segments) // 2 + 1)
    made = Segmentation(
        source_images=outcome.images[planes],
        pixel_array=segments[planes],
        segmentation_type=form,
        segment_descriptions=descriptions,
        transfer_syntax_uid=uid.RLELossless if form == "LABELMAP" else uid.ExplicitVRLittleEndian,
        content_label=dicom_object.upper(),
        content_description="Made by software, for research use only",
        content_qualification="RESEARCH",
        coding_schemes=[SCHEME] if dicom_object == "bands" else None,
        **outcome.common(dicom_object),
    )
    return outcome.finish(made, dicom_object)


def _segments(outcome: Outcome) -> list[SegmentDescription]:
    return [_of_label(outcome, number, label) for number, label in enumerate(outcome.labels, start=1)]


def _of_label(outcome: Outcome, number: int, label: Label) -> SegmentDescription:
    description = _described(outcome, number, label.name, (category_of(label), type_of(label)), label.color)
    side, others = modifiers_of(label)
    modifiers = [modifier for modifier in (side, *others) if modifier is not None]
    if modifiers:
        property_type = description.SegmentedPropertyTypeCodeSequence[0]
        property_type.SegmentedPropertyTypeModifierCodeSequence = [CodedConcept.from_code(code) for code in modifiers]
    return description


def _described(
    outcome: Outcome, number: int, name: str, concept: tuple[Code, Code], color: tuple[int, int, int]
) -> SegmentDescription:
    category, property_type = concept
    return SegmentDescription(
        segment_number=number,
        segment_label=f"{WITHDRAWN} {name}"[:_LABEL_LENGTH] if outcome.withdrawn else name[:_LABEL_LENGTH],
        segmented_property_category=category,
        segmented_property_type=property_type,
        algorithm_type="AUTOMATIC",
        algorithm_identification=outcome.algorithm(),
        display_color=CIELabColor.from_rgb(*color),
    )
