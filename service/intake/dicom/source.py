"""What a result keeps of the DICOM series it was made of: whose it is, and where each slice lies; no voxels.

Written while the scan is decoded, read when DICOM results are made of it, by when the scan may have gone. It names the
patient: it is erased with the result and never logged. Only public attributes with short values are kept.
"""

import json
import math
import uuid
from typing import Any, Final

import numpy as np
from pydantic import BaseModel, ConfigDict
from pydicom import uid
from pydicom.dataset import Dataset

from service.errors import InvalidHeader
from service.intake.dicom.instance import Slice, faults, place_of

MAX_VALUE_BYTES: Final = 1 << 14
"""Longest value that is kept, as JSON; longer ones are no one's name."""

MAX_HEAD_BYTES: Final = 1 << 18
"""Most that is kept of a header; headers without vendors' own attributes have some 10 kB."""

_GROUPS: Final = (0x0008, 0x0010, 0x0012, 0x0020, 0x0032, 0x0040)
"""Patient, study, series, equipment, requests: whatever the modules of patient and study may hold (PS3.3 C.7.1, C.7.2)."""

_NAMED: Final = ("BodyPartExamined", "PatientPosition")
_BYTES: Final = ("OB", "OD", "OF", "OL", "OV", "OW", "UN")
_IDENTITY: Final = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID")


class SourceSlice(BaseModel):
    """One slice of the volume."""

    model_config = ConfigDict(frozen=True)

    instance: str
    """SOP Instance UID."""
    sop_class: str
    frame: int | None
    """Its number in an enhanced multi-frame instance, from 1; null where the instance has one."""
    position_mm: tuple[float, float, float]
    """LPS, of the centre of the first voxel: as written, not as the mean distance would have it."""


class SourceSeries(BaseModel):
    """A series, its slices in the order of k."""

    model_config = ConfigDict(frozen=True)

    head: dict[str, Any]
    """Attributes of the first slice's instance in the DICOM JSON model (PS3.18 F.2)."""
    frame_of_reference: str
    """Frame of Reference UID, empty if the series has none."""
    rows: int
    columns: int
    pixel_spacing_mm: tuple[float, float]
    """Between rows, between columns."""
    slice_thickness_mm: float
    """As written, which may be less than the distance between slices; that distance where nothing is written."""
    slice_distance_mm: float
    """Mean distance between neighbouring slices."""
    orientation: tuple[float, float, float, float, float, float]
    """Image Orientation (Patient) as written."""
    slices: list[SourceSlice]

    @property
    def instances(self) -> dict[str, str]:
        """SOP Class UID by SOP Instance UID, in the order of k."""
        return {each.instance: each.sop_class for each in self.slices}

    def identity(self) -> Dataset:
        """Return the attributes of the first slice's instance, those of patient and study among them."""
        return Dataset.from_json(self.head)

    def images(self) -> list[Dataset]:
        """Return the header of a nameless single-frame image in the place of each slice, with the series' UIDs.

        Its class is always MR: highdicom takes one frame from each such image, where it would take all of an enhanced
        one. `service.dicom.making` puts the true classes and frame numbers into what was made.
        """
        whose = self.identity()
        return [self._image(each, whose) for each in self.slices]

    def _image(self, each: SourceSlice, whose: Dataset) -> Dataset:
        image = Dataset()
        image.SOPClassUID, image.SOPInstanceUID = uid.MRImageStorage, each.instance
        image.StudyInstanceUID, image.SeriesInstanceUID = whose.StudyInstanceUID, whose.SeriesInstanceUID
        image.Modality, image.FrameOfReferenceUID = whose.get("Modality") or "OT", self._coordinates(whose)
        image.PositionReferenceIndicator = None
        for name in _IDENTITY:
            setattr(image, name, "")
        image.StudyDate = image.StudyTime = None
        image.Rows, image.Columns = self.rows, self.columns
        image.PixelSpacing, image.ImageOrientationPatient = list(self.pixel_spacing_mm), list(self.orientation)
        image.ImagePositionPatient = list(each.position_mm)
        image.SliceThickness, image.SpacingBetweenSlices = self.slice_thickness_mm, self.slice_distance_mm
        return image

    def _coordinates(self, whose: Dataset) -> str:
        """Return the frame of reference; a series without one, e.g. of secondary captures, gets one that is its own."""
        name = f"{whose.SeriesInstanceUID}/frame of reference"
        return self.frame_of_reference or f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, name).int}"


def describe_source(slices: list[Slice]) -> str | None:
    """Return a `Source` as JSON; None for files without a Study Instance UID, to which nothing could be added.

    Args:
        slices: of one series with their datasets, in the order of k.
    """
    first = slices[0]
    if not _dataset(first).get("StudyInstanceUID"):
        return None
    place = place_of(_dataset(first), first.frame)
    rows, columns = first.shape
    distance_mm = float(np.linalg.norm(slices[-1].position_mm - first.position_mm)) / (len(slices) - 1)
    source = {
        "head": _head(_dataset(first)),
        "frame_of_reference": first.frame_of_reference,
        "rows": rows,
        "columns": columns,
        "pixel_spacing_mm": [float(mm) for mm in place.PixelSpacing],
        "slice_thickness_mm": _positive(place.get("SliceThickness")) or distance_mm,
        "slice_distance_mm": distance_mm,
        "orientation": [float(cosine) for cosine in place.ImageOrientationPatient],
        "slices": [
            {
                "instance": each.instance,
                "sop_class": str(_dataset(each).SOPClassUID),
                "frame": each.frame + 1 if "PerFrameFunctionalGroupsSequence" in _dataset(each) else None,
                "position_mm": each.position_mm.tolist(),
            }
            for each in slices
        ],
    }
    return json.dumps(source)


def _positive(value: object) -> float | None:
    """Return a number that is one and larger than 0, else None."""
    try:
        number = float(str(value))
    except ValueError:
        return None
    return number if 0 < number < math.inf else None


def _dataset(each: Slice) -> Dataset:
    if each.dataset is None:
        msg = "a slice without its dataset has no header to keep"
        raise ValueError(msg)
    return each.dataset


def _head(dataset: Dataset) -> dict[str, Any]:
    with faults(InvalidHeader, "A DICOM file's header cannot be read. Export the series again."):
        return _bounded(dataset)


def _bounded(dataset: Dataset) -> dict[str, Any]:
    """Return the public attributes of whom and what, without voxels and without long values."""
    kept = Dataset()
    for tag in dataset.keys():  # noqa: SIM118 - the elements themselves would be decoded, those with voxels too
        if tag.group in _GROUPS:
            kept[tag] = dataset.get_item(tag)
    for keyword in _NAMED:
        if keyword in dataset:
            kept[keyword] = dataset[keyword]
    kept.remove_private_tags()
    head: dict[str, Any] = kept.to_json_dict(bulk_data_threshold=MAX_VALUE_BYTES, suppress_invalid_tags=True)
    left, bounded = MAX_HEAD_BYTES, {}
    for name, element in head.items():
        size = len(json.dumps(element))
        if element["vr"] not in _BYTES and size <= min(MAX_VALUE_BYTES, left):
            bounded[name] = element
            left -= size
    return bounded
