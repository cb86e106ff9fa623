"""Make DICOM series for tests: a NIfTI scan or an array -> CT or MR images at the same place in the patient.

The images have one frame each (PS3.3 A.3, A.4) and the attributes that dciodvfy requires. Real numbers become 16 bits
with slope and intercept. Patient attributes hold canaries such as CANARY^PATIENT, which may appear nowhere but in
DICOM results.
"""

import hashlib
import io
import uuid
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset

CANARY_NAME = "CANARY^PATIENT"
CANARY_ID = "CANARY-PATIENT-ID"

_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_CLASSES = {"CT": pydicom.uid.CTImageStorage, "MR": pydicom.uid.MRImageStorage}
_MOST = 30_000


@dataclass(frozen=True)
class Identity:
    """Patient and UIDs of a series; equal seeds give equal UIDs, so a series can be reproduced."""

    seed: str = "canary"
    modality: str = "MR"
    patient_name: str = CANARY_NAME
    patient_id: str = CANARY_ID

    def uid(self, *parts: object) -> str:
        """Return a UID derived from the seed (PS3.5 B.2)."""
        text = "/".join(str(part) for part in (self.seed, *parts))
        return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, text).int}"


def series_of_nifti(path: Path, identity: Identity | None = None) -> list[Dataset]:
    """Return the images of a 3-D NIfTI file, one for each k, in the order of k.

    Args:
        path: of a .nii or .nii.gz.
        identity: of the patient; UIDs are derived from its seed and the file's bytes.
    """
    image: Any = nib.load(path)
    identity = identity or Identity()
    seed = f"{identity.seed}/{hashlib.sha256(path.read_bytes()).hexdigest()}"
    chosen = Identity(seed, identity.modality, identity.patient_name, identity.patient_id)
    return series_of_array(np.asarray(image.dataobj), image.affine, chosen)


def series_of_array(
    array: npt.NDArray[Any], affine_ras: npt.NDArray[np.float64], identity: Identity | None = None
) -> list[Dataset]:
    """Return the images of an array (i, j, k), one for each k.

    Args:
        array: intensities; integers of at most 16 bits are stored unchanged.
        affine_ras: (4, 4) voxel index to RAS millimetres, with axes at right angles.
        identity: of the patient.
    """
    identity = identity or Identity()
    lps = _RAS_TO_LPS @ affine_ras
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    stored, slope, intercept = _stored(array)
    return [_image(stored[..., k].T, k, lps, spacing, (slope, intercept), identity) for k in range(array.shape[2])]


def small_series(affine_ras: npt.NDArray[np.float64]) -> list[Dataset]:
    """Return an MR series of 12 x 10 x 8 voxels with random intensities."""
    array = np.random.default_rng(5).integers(0, 900, (12, 10, 8)).astype(np.int16)
    return series_of_array(array, affine_ras)


def file_of(image: Dataset) -> bytes:
    """Return an image as a DICOM file (PS3.10)."""
    file = io.BytesIO()
    pydicom.dcmwrite(file, image, enforce_file_format=True)
    return file.getvalue()


def zip_of_series(images: Sequence[Dataset]) -> bytes:
    """Return a zip of a series whose file names contain the canary."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as files:
        for number, image in enumerate(images):
            files.writestr(f"{CANARY_NAME}/{number:04}.dcm", file_of(image))
    return archive.getvalue()


def write_series(images: Sequence[Dataset], folder: Path) -> list[Path]:
    """Write a series into a folder, e.g. for storescu, and return the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:04}.dcm" for number in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        path.write_bytes(file_of(image))
    return paths


def _stored(array: npt.NDArray[Any]) -> tuple[npt.NDArray[np.int16], float, float]:
    """Return 16-bit integers with the slope and intercept that restore the intensities."""
    if array.dtype.kind in "iu" and np.iinfo(np.int16).min <= array.min() <= array.max() <= np.iinfo(np.int16).max:
        return array.astype("<i2"), 1.0, 0.0
    low, high = float(array.min()), float(array.max())
    slope = float(f"{(high - low) / _MOST or 1:.8g}")
    intercept = float(f"{low:.8g}")
    return np.rint((array - intercept) / slope).astype("<i2"), slope, intercept


def _image(
    pixels: npt.NDArray[np.int16],
    k: int,
    lps: npt.NDArray[np.float64],
    spacing: npt.NDArray[np.float64],
    rescale: tuple[float, float],
    identity: Identity,
) -> Dataset:
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = _CLASSES[identity.modality]
    image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.UID(identity.uid("instance", k))
    _identify(image, identity)
    image.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    image.InstanceNumber, image.AcquisitionNumber = k + 1, 1
    image.ImagePositionPatient = [f"{mm:.10g}" for mm in lps[:3] @ [0, 0, k, 1]]
    image.ImageOrientationPatient = [f"{cosine:.10g}" for cosine in (lps[:3, :2] / spacing[:2]).T.ravel()]
    image.PixelSpacing = [f"{mm:.10g}" for mm in spacing[1::-1]]
    image.SliceThickness = f"{spacing[2]:.10g}"
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.Rows, image.Columns = pixels.shape
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 1
    image.RescaleSlope, image.RescaleIntercept = (f"{number:.10g}" for number in rescale)
    _describe_scanner(image)
    image["PixelData"] = pydicom.DataElement("PixelData", "OW", np.ascontiguousarray(pixels).tobytes())
    return image


def _identify(image: Dataset, identity: Identity) -> None:
    image.SpecificCharacterSet = "ISO_IR 192"
    image.PatientName, image.PatientID = identity.patient_name, identity.patient_id
    image.PatientBirthDate, image.PatientSex, image.PatientAge = "19010203", "O", "099Y"
    image.StudyInstanceUID, image.SeriesInstanceUID = identity.uid("study"), identity.uid("series")
    image.FrameOfReferenceUID, image.PositionReferenceIndicator = identity.uid("frame of reference"), ""
    image.StudyDate = image.SeriesDate = image.AcquisitionDate = image.ContentDate = "20260102"
    image.StudyTime = image.SeriesTime = image.AcquisitionTime = image.ContentTime = "030405"
    image.StudyID, image.AccessionNumber = "CANARY-STUDY", "CANARY-ACC"
    image.StudyDescription, image.SeriesDescription = "CANARY study", "CANARY series"
    image.ReferringPhysicianName, image.InstitutionName = "CANARY^REFERRER", "CANARY hospital"
    image.Modality, image.SeriesNumber, image.BodyPartExamined, image.Laterality = identity.modality, 3, "HEAD", ""
    image.PatientPosition = "HFS"


def _describe_scanner(image: Dataset) -> None:
    image.Manufacturer, image.ManufacturerModelName = "Calibrant's tests", "phantom"
    if image.Modality == "CT":
        image.KVP, image.RescaleType = "120", "HU"
        return
    image.ScanningSequence, image.SequenceVariant, image.ScanOptions = "GR", "SP", ""
    image.MRAcquisitionType, image.RepetitionTime, image.EchoTime, image.EchoTrainLength = "3D", "9", "4", 1
