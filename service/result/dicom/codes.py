"""Coded concepts of DICOM results: the standard's where it has one, private ones elsewhere.

Private codes have the designator 99CALIBRANT (PS3.16 section 8.2: private designators begin with 99). Their table is
frozen: no code ever changes its meaning or is reused. `docs/dicom.md` repeats it, and a test compares the two.
"""

from typing import Final

from highdicom.coding_schemes import CodingSchemeIdentificationItem
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from service.bundle.schema import Code as BundleCode
from service.bundle.schema import Label
from service.schemas import StatementStatus

DESIGNATOR: Final = "99CALIBRANT"

_MEANINGS: Final = {
    "C01": "Mean confidence",
    "C02": "5th percentile of confidence",
    "C03": "Expected accuracy",
    "C04": "Lower bound of volume",
    "C05": "Upper bound of volume",
    "C06": "Estimated Dice coefficient",
    "C07": "Cut off by field of view",
    "C08": "Status of calibration statement",
    "C09": "Statement holds",
    "C10": "Statement withdrawn",
    "C11": "Calibration statement",
    "C12": "Reason of withdrawal",
    "C13": "Intended use",
    "C14": "Confidence",
    "C15": "Region of low confidence",
    "C16": "Region of moderate confidence",
    "C17": "Region of high confidence",
    "C18": "Image-level calibration summary",
    "C19": "Statement not compared",
    "C20": "Not compared",
    "C21": "p-value against the persons of the calibration card",
    "C22": "Number of persons compared with",
    "C23": "Found in the scan",
}


def _own(value: str) -> Code:
    return Code(value, DESIGNATOR, _MEANINGS[value])


PRIVATE: Final = tuple(_own(value) for value in _MEANINGS)
"""All private codes."""

MEAN_CONFIDENCE: Final = _own("C01")
P5_CONFIDENCE: Final = _own("C02")
VOLUME_LOWER_BOUND: Final = _own("C04")
VOLUME_UPPER_BOUND: Final = _own("C05")
ESTIMATED_DICE: Final = _own("C06")
CUT_OFF: Final = _own("C07")
STATEMENT_STATUS: Final = _own("C08")
STATEMENT: Final = _own("C11")
REASON: Final = _own("C12")
INTENDED_USE: Final = _own("C13")
CONFIDENCE: Final = _own("C14")
CONFIDENCE_BANDS: Final = (_own("C15"), _own("C16"), _own("C17"))
IMAGE_LEVEL: Final = _own("C18")

NOT_COMPARED: Final = _own("C20")
P_VALUE: Final = _own("C21")
PERSONS: Final = _own("C22")
FOUND: Final = _own("C23")

STATUSES: Final[dict[StatementStatus, Code]] = {
    "holds": _own("C09"),
    "withdrawn": _own("C10"),
    "not compared": _own("C19"),
}
"""Code of each status of the summary's statement."""

SCHEME: Final = CodingSchemeIdentificationItem(
    designator=DESIGNATOR,
    name="Codes of Calibrant, docs/dicom.md",
    responsible_organization="Calibrant",
)
"""Identification of the private coding scheme (PS3.3 C.12.1.1.1)."""

_PROCEDURES: Final = {
    "CT": codes.cid100.CTUnspecifiedBodyRegion,
    "MR": codes.cid100.MRIUnspecifiedBodyRegion,
    "PT": codes.cid100.PETUnspecifiedBodyRegion,
}
_LATERALITY: Final = tuple(getattr(codes.cid244, name) for name in codes.cid244.dir())
_LESIONS: Final = tuple(getattr(codes.cid7159, name) for name in codes.cid7159.dir())


def procedure_of(modality: str) -> Code:
    """Return the imaging procedure of a modality (PS3.16 CID 100)."""
    return _PROCEDURES.get(modality, codes.cid100.ImagingProcedure)


def type_of(label: Label) -> Code:
    """Return the segmented property type of a label; tissue for a label without a code."""
    return codes.SCT.Tissue if label.code is None else _of_standard(label.code)


def category_of(label: Label) -> Code:
    """Return the segmented property category of a label (PS3.16 CID 7150); lesions are the types of CID 7159."""
    property_type = type_of(label)
    if property_type == codes.SCT.Tissue:
        return codes.cid7150.Tissue
    lesion = property_type in _LESIONS
    return codes.cid7150.MorphologicallyAbnormalStructure if lesion else codes.cid7150.AnatomicalStructure


def modifiers_of(label: Label) -> tuple[Code | None, list[Code]]:
    """Return a label's laterality (PS3.16 CID 244), None without one, and its other modifiers."""
    modifiers = [_of_standard(modifier) for modifier in label.modifiers]
    sides = [modifier for modifier in modifiers if modifier in _LATERALITY]
    return sides[0] if sides else None, [modifier for modifier in modifiers if modifier not in _LATERALITY]


def _of_standard(code: BundleCode) -> Code:
    """Return a bundle's code with a meaning from the standard's dictionary, preferably the bundle's own meaning."""
    meanings = _MEANINGS_OF_SNOMED.get(code.value, ()) if code.scheme == _SNOMED else ()
    meaning = code.meaning if code.meaning in meanings or not meanings else meanings[0]
    return Code(code.value, code.scheme, meaning)


def _meanings_of_snomed() -> dict[str, list[str]]:
    meanings: dict[str, list[str]] = {}
    for name in codes.SCT.dir():
        code = getattr(codes.SCT, name)
        meanings.setdefault(code.value, []).append(code.meaning)
    return meanings


_SNOMED: Final = "SCT"
_MEANINGS_OF_SNOMED: Final = _meanings_of_snomed()
