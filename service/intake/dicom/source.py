"""The headers of a DICOM series that a result keeps: patient, study and the place of each slice, but no voxels.

They are written while the scan is decoded and read when DICOM results are made, when the scan may be gone. They name
the patient: they are erased with the result and never logged. Only public attributes with short values are kept.
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
"""Maximum length of a value that is kept, as JSON; longer values are not needed to identify anyone."""

MAX_HEAD_BYTES: Final = 1 << 18
"""Maximum size of the kept header; without private attributes headers have some 10 kB."""

_GROUPS: Final = (0x0008, 0x0010, 0x0012, 0x0020, 0x0032, 0x0040)
"""Groups of the attributes of patient, study, series, equipment and requests (PS3.3 C.7.1, C.7.2)."""

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
    """Frame number in an enhanced multi-frame instance, from 1; null in a single-frame instance."""
    position_mm: tuple[float, float, float]
    """LPS centre of the first voxel, as written in the file, not as computed from the mean slice distance."""


class SourceSeries(BaseModel):
    """A series with its slices in the order of k."""

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
    """Slice Thickness as written, which may differ from the slice distance; the slice distance where it is absent."""
    slice_distance_mm: float
    """Mean distance between neighbouring slices."""
    orientation: tuple[float, float, float, float, float, float]
    """Image Orientation (Patient) as written."""
    slices: list[SourceSlice]

    @property
    def instances(self) -> dict[str, str]:
        """SOP Class UID by SOP Instance UID, in the order of k."""
        return {image.instance: image.sop_class for image in self.slices}

    def identity(self) -> Dataset:
        """Return the attributes of the first slice's instance, including those of patient and study."""
        return Dataset.from_json(self.head)

    def images(self) -> list[Dataset]:
        """Return one anonymous single-frame image header for each slice, at its place and with the series' UIDs.

        Their SOP class is always MR: highdicom takes one frame from each such image, but all frames of an enhanced
        one. `service.result.dicom.outcome` puts the true classes and frame numbers into the finished objects.
        """
        identity = self.identity()
        return [self._image(place, identity) for place in self.slices]

    def _image(self, place: SourceSlice, identity: Dataset) -> Dataset:
        image = Dataset()
        image.SOPClassUID, image.SOPInstanceUID = uid.MRImageStorage, place.instance
        image.StudyInstanceUID, image.SeriesInstanceUID = identity.StudyInstanceUID, identity.SeriesInstanceUID
        image.Modality, image.FrameOfReferenceUID = identity.get("Modality") or "OT", self._coordinates(identity)
        image.PositionReferenceIndicator = None
        for name in _IDENTITY:
            setattr(image, name, "")
        image.StudyDate = image.StudyTime = None
        image.Rows, image.Columns = self.rows, self.columns
        image.PixelSpacing, image.ImageOrientationPatient = list(self.pixel_spacing_mm), list(self.orientation)
        image.ImagePositionPatient = list(place.position_mm)
        image.SliceThickness, image.SpacingBetweenSlices = self.slice_thickness_mm, self.slice_distance_mm
        return image

    def _coordinates(self, identity: Dataset) -> str:
        """Return the Frame of Reference UID; for a series without one, e.g. of secondary captures, derive one from it."""
        name = f"{identity.SeriesInstanceUID}/frame of reference"
        return self.frame_of_reference or f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, name).int}"


def describe_source(slices: list[Slice]) -> str | None:
    """Return a `SourceSeries` as JSON; None without a Study Instance UID, since no study could hold the results.

    Args:
        slices: of one series, with their datasets, in the order of k.
    """
    datasets = [_dataset(image) for image in slices]
    with faults(InvalidHeader, "A DICOM file's header cannot be read. Export the series again."):
        return _described(slices, datasets)


def _described(slices: list[Slice], datasets: list[Dataset]) -> str | None:
    first = slices[0]
    if not datasets[0].get("StudyInstanceUID"):
        return None
    place = place_of(datasets[0], first.frame)
    rows, columns = first.shape
    distance_mm = float(np.linalg.norm(slices[-1].position_mm - first.position_mm)) / (len(slices) - 1)
    source = {
        "head": _head(datasets[0]),
        "frame_of_reference": first.frame_of_reference,
        "rows": rows,
        "columns": columns,
        "pixel_spacing_mm": [float(mm) for mm in place.PixelSpacing],
        "slice_thickness_mm": _positive(place.get("SliceThickness")) or distance_mm,
        "slice_distance_mm": distance_mm,
        "orientation": [float(cosine) for cosine in place.ImageOrientationPatient],
        "slices": [
            {
                "instance": image.instance,
                "sop_class": str(dataset.SOPClassUID),
                "frame": image.frame + 1 if "PerFrameFunctionalGroupsSequence" in dataset else None,
                "position_mm": image.position_mm.tolist(),
            }
            for image, dataset in zip(slices, datasets, strict=True)
        ],
    }
    return json.dumps(source)


def _positive(value: object) -> float | None:
    """Return the value as a finite number above 0, or None if it is not one."""
    try:
        number = float(str(value))
    except ValueError:
        return None
    return number if 0 < number < math.inf else None


def _dataset(image: Slice) -> Dataset:
    if image.dataset is None:
        msg = "a slice without its dataset has no header to keep"
        raise ValueError(msg)
    return image.dataset


def _head(dataset: Dataset) -> dict[str, Any]:
    with faults(InvalidHeader, "A DICOM file's header cannot be read. Export the series again."):
        return _bounded(dataset)


def _bounded(dataset: Dataset) -> dict[str, Any]:
    """Return the public attributes of patient, study and series as DICOM JSON, without voxels and long values."""
    kept = Dataset()
    for tag in dataset.keys():  # noqa: SIM118 - iterating over elements would decode them, voxels included
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
