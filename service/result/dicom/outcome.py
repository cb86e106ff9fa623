"""The input of every DICOM object of a result, and what all objects share: identity, equipment, UIDs, dates.

UIDs are derived from the content: the same result always gets the same UIDs and a changed one gets others, because a
PACS keeps the first object that it receives under a UID.
"""

import datetime as dt
import hashlib
import json
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from highdicom import AlgorithmIdentificationSequence
from highdicom.base import SOPClass
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.valuerep import DA, DT, TM

from service import __version__
from service.bundle.schema import Label
from service.intake.dicom.source import SourceSeries
from service.schemas import WITHDRAWN, DicomObject, Summary, Superseded

SERIES: Final[Mapping[DicomObject, tuple[int, str]]] = {
    "seg": (9001, "Segmentation"),
    "sr": (9002, "Report"),
    "sc": (9003, "Summary"),
    "pm": (9004, "Confidence map"),
    "bands": (9005, "Confidence bands"),
    "labelmap": (9006, "Label map"),
    "pdf": (9007, "Summary as PDF"),
}
"""Series Number and start of the Series Description of each object."""

MANUFACTURER: Final = "Calibrant"

_OF_A_BODY_PART: Final = ("sc", "pm")
"""Objects without a coded structure that would state the body part and its side."""

_NOTE: Final = "by AI, research use only"
_REPLACES: Final = "; replaces earlier one"
_LONG_STRING: Final = 64
_CHARACTER_SET: Final = "ISO_IR 192"


@dataclass(frozen=True)
class ModelIdentity:
    """The model that computed a result.

    Args:
        name: of the bundle.
        version: of the bundle.
        bundle_sha256: of its manifest.
        weights_sha256: of its weights.
        card_sha256: of its calibration card.
    """

    name: str
    version: str
    bundle_sha256: str
    weights_sha256: str
    card_sha256: str

    @property
    def parameters(self) -> dict[str, str]:
        """The hashes that identify the model, as parameters of its algorithm."""
        return {"bundle": self.bundle_sha256, "weights": self.weights_sha256, "card": self.card_sha256}


@dataclass(frozen=True)
class StructureEstimate:
    """Estimates of a structure that follow from a card without a reference; None where the card gives none.

    Args:
        dice: estimated Dice coefficient, in [0, 1].
        volume_low_mm3: lower bound of the volume.
        volume_high_mm3: upper bound of the volume.
    """

    dice: float | None = None
    volume_low_mm3: float | None = None
    volume_high_mm3: float | None = None


@dataclass(frozen=True)
class Outcome:
    """A result on the slices of its source series.

    Args:
        source: the series.
        labels: of the structures, without the background; segment n is the n-th.
        mask_KRC: (slices, rows, columns) uint8 label values, in the order of the source's slices.
        confidence_KRC: the same shape, uint8 or uint16: probability of the mask's label, scaled to the type's maximum.
        summary: of the image.
        model: that computed it.
        created: date and time of the result.
        content: SHA-256 over the files that the objects show.
        supersedes: the report of an earlier result that this one replaces, e.g. because slices arrived late.
        estimates: by label value; no bundle offers any so far.
    """

    source: SourceSeries
    labels: list[Label]
    mask_KRC: npt.NDArray[np.uint8]
    confidence_KRC: npt.NDArray[np.uint8 | np.uint16]
    summary: Summary
    model: ModelIdentity
    created: dt.datetime
    content: str
    supersedes: Superseded | None = None
    estimates: Mapping[int, StructureEstimate] = field(default_factory=dict)

    @property
    def withdrawn(self) -> bool:
        """Whether the statement is withdrawn: then every object says so in its series description."""
        return self.summary.statement.status == "withdrawn"

    @cached_property
    def images(self) -> list[Dataset]:
        """Anonymous image header at the place of each slice."""
        return self.source.images()

    @cached_property
    def segments(self) -> npt.NDArray[np.uint8]:
        """(slices, rows, columns) segment number at each voxel, 0 for none."""
        numbers = np.zeros(256, np.uint8)
        for number, label in enumerate(self.labels, start=1):
            numbers[label.value] = number
        return numbers[self.mask_KRC]

    def key(self, dicom_object: DicomObject) -> str:
        """Return the SHA-256 of everything that determines an object."""
        parts = {
            "instances": sorted(self.source.instances),
            "model": self.model.parameters,
            "content": self.content,
            "object": dicom_object,
            "calibrant": __version__,
            "supersedes": self.supersedes.sop_instance_uid if self.supersedes else None,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def uid(self, dicom_object: DicomObject, what: str) -> str:
        """Return a UID of an object, derived from a name-based UUID (PS3.5 B.2).

        Args:
            dicom_object: whose UID.
            what: it identifies, e.g. "instance" or "series".
        """
        return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, f'{self.key(dicom_object)}/{what}').int}"

    def common(self, dicom_object: DicomObject) -> dict[str, Any]:
        """Return the arguments that the constructors of all highdicom classes share."""
        number, title = SERIES[dicom_object]
        return {
            "series_instance_uid": self.uid(dicom_object, "series"),
            "series_number": number,
            "series_description": self._series_description(title),
            "sop_instance_uid": self.uid(dicom_object, "instance"),
            "instance_number": 1,
            "manufacturer": MANUFACTURER,
            "manufacturer_model_name": self.model.name,
            "software_versions": (f"Calibrant {__version__}", f"{self.model.name} {self.model.version}"[:_LONG_STRING]),
            "device_serial_number": self.model.bundle_sha256,
            "content_date": self.created.date(),
            "content_time": self.created.time(),
            "specific_character_set": _CHARACTER_SET,
        }

    def _series_description(self, title: str) -> str:
        """Return at most 64 characters; a mark comes first, and may cut off the last note."""
        replaces = _REPLACES if self.supersedes else ""
        if self.withdrawn:
            return f"{WITHDRAWN} {title} {_NOTE}{replaces}"[:_LONG_STRING].rstrip()
        return f"{title} {_NOTE}{replaces}"

    def algorithm(self) -> AlgorithmIdentificationSequence:
        """Return the model's Algorithm Identification (PS3.3 10.16)."""
        return AlgorithmIdentificationSequence(
            name=self.model.name,
            family=codes.cid7162.ArtificialIntelligence,
            version=self.model.version,
            source=MANUFACTURER,
            parameters=self.model.parameters,
        )

    def finish(self, made: SOPClass, dicom_object: DicomObject) -> SOPClass:
        """Complete an object in place with patient and study, true references and reproducible dates and UIDs; return it."""
        identity = self.source.identity()
        made.copy_patient_and_study_information(identity)
        if dicom_object in _OF_A_BODY_PART:
            _name_body_part(made, identity)
        made.InstanceCreationDate, made.InstanceCreationTime = DA(self.created.date()), TM(self.created.time())
        if "DateOfSecondaryCapture" in made:
            made.DateOfSecondaryCapture, made.TimeOfSecondaryCapture = made.ContentDate, made.ContentTime
        for item in made.get("ContributingEquipmentSequence", []):
            item.ContributionDateTime = DT(self.created.replace(tzinfo=None))
        for item in (*made.get("DimensionOrganizationSequence", []), *made.get("DimensionIndexSequence", [])):
            item.DimensionOrganizationUID = self.uid(dicom_object, "dimensions")
        self._refer_truly(made)
        return made

    def _refer_truly(self, made: SOPClass) -> None:
        """Replace the placeholders of `SourceSeries.images` in references by true classes and frame numbers."""
        classes = self.source.instances
        for series in made.get("ReferencedSeriesSequence", []):
            series.ReferencedInstanceSequence = [reference(*instance) for instance in classes.items()]
        for item in _sources_of_frames(made):
            item.ReferencedSOPClassUID = classes[item.ReferencedSOPInstanceUID]
        for item, frame in self._frames(made):
            item.ReferencedFrameNumber = frame

    def _frames(self, made: SOPClass) -> Iterator[tuple[Dataset, int]]:
        """Yield, for each frame derived from a frame of an enhanced instance, its reference and that frame's number."""
        frames = {source.position_mm: source.frame for source in self.source.slices if source.frame}
        if not frames:
            return
        positions = np.array(list(frames))
        for frame in made.get("PerFrameFunctionalGroupsSequence", []):
            position = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, np.float64)
            number = list(frames.values())[int(np.linalg.norm(positions - position, axis=1).argmin())]
            yield frame.DerivationImageSequence[0].SourceImageSequence[0], number


def _name_body_part(made: SOPClass, identity: Dataset) -> None:
    """Copy the source's body part and laterality; laterality is required, if empty, for an unnamed part (PS3.3 C.7.3.1)."""
    if identity.get("BodyPartExamined"):
        made.BodyPartExamined = identity.BodyPartExamined
    if identity.get("Laterality") or not identity.get("BodyPartExamined"):
        made.Laterality = identity.get("Laterality") or ""


def reference(instance: str, sop_class: str) -> Dataset:
    """Return an item that refers to an instance (PS3.3 10.8)."""
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, instance
    return item


def _sources_of_frames(made: SOPClass) -> Iterator[Dataset]:
    for frame in made.get("PerFrameFunctionalGroupsSequence", []):
        for derivation in frame.get("DerivationImageSequence", []):
            yield from derivation.SourceImageSequence
