"""One DICOM file -> its slices: position, rescaling and the voxels, still encoded.

A single-frame CT, MR, PET or secondary capture image that has a place in the patient is one slice; an enhanced
multi-frame object has one slice for each frame (PS3.3 C.7.6.16, Multi-frame Functional Groups). Positions are LPS
millimetres.
"""

import hashlib
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom import config, uid
from pydicom.dataset import Dataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.utils import pixel_array

from service.errors import (
    CalibrantError,
    InvalidAffine,
    InvalidHeader,
    InvalidSpacing,
    MissingOrientation,
    PayloadTooLong,
    PayloadTruncated,
    UndecodableVoxels,
    UnsupportedDimensions,
    UnsupportedTransferSyntax,
    UnsupportedVoxelType,
)
from service.intake.dicom.deflated import inflated
from service.intake.dicom.part10 import START_BYTES, completed
from service.intake.dicom.stated import stated_of
from service.intake.formats.archive import Unpacked
from service.intake.formats.geometry import EXTREMES_MM
from service.volume import Stated

# Read malformed values as far as possible: pydicom's warnings would repeat them in the log.
config.settings.reading_validation_mode = config.IGNORE

_IMAGES = {
    *(uid.CTImageStorage, uid.EnhancedCTImageStorage, uid.LegacyConvertedEnhancedCTImageStorage),
    *(uid.MRImageStorage, uid.EnhancedMRImageStorage, uid.LegacyConvertedEnhancedMRImageStorage),
    *(uid.PositronEmissionTomographyImageStorage, uid.EnhancedPETImageStorage),
    *(uid.LegacyConvertedEnhancedPETImageStorage, uid.SecondaryCaptureImageStorage),
}
_NATIVE = {uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian}
# Pin one decoder per transfer syntax, so that installed plugins cannot change the voxels.
_DECODERS = {
    uid.RLELossless: "pydicom",
    **dict.fromkeys([uid.JPEGLSLossless, uid.JPEGLSNearLossless], "pyjpegls"),
    **dict.fromkeys([uid.JPEG2000Lossless, uid.JPEG2000], "pylibjpeg"),
    **dict.fromkeys([uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K], "pylibjpeg"),
    **dict.fromkeys([uid.JPEGLossless, uid.JPEGLosslessSV1, uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit], "gdcm"),
}
# Functional groups with the place of a frame.
_GROUPS = ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence")
SEPARATORS: Final = {
    "acquisitions": "AcquisitionNumber",
    "time points": "TemporalPositionIdentifier",
    "trigger times": "TriggerTime",
    "echo times": "EchoTime",
    "b-values": "DiffusionBValue",
    "diffusion directions": "DiffusionGradientOrientation",
    "kinds of image": "ImageType",
}
"""Attributes that distinguish images at one position, by the name of what is counted (PS3.3 C.7.6.1, C.8.3, C.8.13)."""

_IN_GROUPS: Final = {
    "TemporalPositionIdentifier": ("FrameContentSequence", "TemporalPositionIndex"),
    "TriggerTime": ("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime"),
    "EchoTime": ("MREchoSequence", "EffectiveEchoTime"),
    "DiffusionBValue": ("MRDiffusionSequence", "DiffusionBValue"),
    "DiffusionGradientOrientation": ("MRDiffusionSequence", "DiffusionGradientDirectionSequence"),
    "ImageType": ("MRImageFrameTypeSequence", "FrameType"),
}
"""Where an enhanced image holds the same for each frame (PS3.3 C.8.13.5, C.7.6.16.2)."""

_PRIVATE_B_VALUES: Final = (
    (0x0019, "SIEMENS MR HEADER", 0x0C),
    (0x0043, "GEMS_PARM_01", 0x39),
    (0x2001, "Philips Imaging DD 001", 0x03),
)
"""Group, creator and element of the b-value of images that lack the standard's attribute."""

_NEEDED = ("StudyInstanceUID", "SliceThickness")  # by `service.intake.dicom.source`
_ROUNDING = 0.01
_FILE_META = 0x0002


@dataclass(frozen=True, slots=True, eq=False)
class Slice:
    """One image of a series.

    Args:
        series: Series Instance UID.
        modality: Modality, e.g. MR.
        number: Series Number as written, empty if there is none.
        instance: SOP Instance UID.
        frame: index within the instance, from 0.
        frame_of_reference: Frame of Reference UID, empty if there is none.
        localizer: whether Image Type contains LOCALIZER.
        inverted: whether large values are meant to be displayed dark (MONOCHROME1).
        shape: rows and columns.
        spacing_mm: (2,) between rows, between columns.
        orientation: (2, 3) LPS directions in which the column index and the row index grow.
        position_mm: (3,) LPS centre of the first voxel.
        rescale: slope and intercept from stored values to intensities.
        padding: least and largest stored value that stand for nothing (PS3.3 C.7.5.1.1.2); None if none is declared.
        digest: SHA-256 of the stored voxels.
        acquired: values of the attributes in `SEPARATORS`, which distinguish acquisitions at one place.
        stated: what its file says about the scan.
        dataset: holds the voxels; None if they are not needed.
    """

    series: str
    modality: str
    number: str
    instance: str
    frame: int
    frame_of_reference: str
    localizer: bool
    inverted: bool
    shape: tuple[int, int]
    spacing_mm: npt.NDArray[np.float64]
    orientation: npt.NDArray[np.float64]
    position_mm: npt.NDArray[np.float64]
    rescale: tuple[float, float]
    padding: tuple[int, int] | None
    digest: bytes
    acquired: tuple[str, ...]
    stated: Stated
    dataset: Dataset | None

    def intensities(self) -> npt.NDArray[np.float32]:
        """Return the (rows, columns) intensities: the output of the Modality LUT (PS3.3 C.11.1), e.g. Hounsfield units.

        Raises:
            UndecodableVoxels: the stored voxels are damaged.
        """
        return self.intensities_and_padding()[0]

    def intensities_and_padding(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_] | None]:
        """Return the intensities and which of them are padding, (rows, columns); None if the file declares none.

        Padding is declared in stored values, before slope and intercept.

        Raises:
            UndecodableVoxels: the stored voxels are damaged.
        """
        with faults(UndecodableVoxels, "The voxels of a DICOM file cannot be decoded. Export the series again."):
            decoder = _DECODERS.get(self.dataset.file_meta.TransferSyntaxUID, "")  # type: ignore[union-attr] # kept by the caller
            stored = pixel_array(self.dataset, index=self.frame, raw=True, decoding_plugin=decoder)  # type: ignore[arg-type] # as above
            if stored.shape != self.shape:
                raise ValueError
        slope, intercept = self.rescale
        with np.errstate(over="ignore"):  # infinite intensities are refused later
            intensities = (stored * np.float64(slope) + intercept).astype(np.float32)
        if self.padding is None:
            return intensities, None
        low, high = self.padding
        return intensities, (stored >= low) & (stored <= high)


def read_instance(content: bytes, unpacked: Unpacked | None = None, *, with_voxels: bool) -> list[Slice]:
    """Return the slices of a DICOM file; none if it is not a CT, MR, PET or secondary capture image.

    Args:
        content: of the file.
        unpacked: counts what a deflated file inflates to, as for `inflated`.
        with_voxels: whether `Slice.intensities` will be called.

    Raises:
        ScanError: its class says what is wrong; the message holds nothing of the file's content.
    """
    with faults(InvalidHeader, "A DICOM file cannot be read. Export the series again."):
        content = inflated(completed(content), unpacked)
        meta = _file_meta(content)
        if meta.get("MediaStorageSOPClassUID") not in _IMAGES:
            return []
        _reject_transfer_syntax(meta.TransferSyntaxUID)
        dataset = pydicom.dcmread(io.BytesIO(content))
        if dataset.get("SOPClassUID") not in _IMAGES:
            return []
        _reject_mosaic(dataset)
        _reject_voxel_type(dataset)
        _reject_length(dataset)
        stated = stated_of(dataset)
        for name in _NEEDED:  # pydicom reads an element when it is asked for: it fails here, before the 202
            dataset.get(name)
        return [_slice(dataset, frame, stated, with_voxels=with_voxels) for frame in range(_frames(dataset))]


@contextmanager
def faults(error: type[CalibrantError], msg: str) -> Iterator[None]:
    """Turn whatever pydicom and its decoders raise over a file into one error.

    Args:
        error: raised instead.
        msg: its message.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # they would repeat the file's content
            yield
    except (CalibrantError, MemoryError):
        raise
    except Exception as fault:  # pydicom and its decoders raise a dozen types, depending on where the damage is
        raise error(msg) from fault


def _file_meta(content: bytes) -> Dataset:
    """Return group 0002 alone: to read more, pydicom would first inflate a deflated file, whatever its size."""
    file = io.BytesIO(content)
    file.seek(START_BYTES)
    return pydicom.filereader.read_dataset(
        file, is_implicit_VR=False, is_little_endian=True, stop_when=lambda tag, _vr, _length: tag.group != _FILE_META
    )


def _reject_transfer_syntax(transfer_syntax: uid.UID) -> None:
    if transfer_syntax in _NATIVE:
        return
    if transfer_syntax in _DECODERS and _DECODERS[transfer_syntax] in get_decoder(transfer_syntax).available_plugins:
        return
    # A name of the standard's own list, never the file's text.
    known = transfer_syntax.name != str(transfer_syntax)
    name = (
        f"{transfer_syntax.name} ({transfer_syntax})" if known else "a transfer syntax that the standard does not list"
    )
    msg = f"The DICOM files are in {name}, which is not decoded here. Export them uncompressed, or as RLE, JPEG lossless, JPEG-LS or JPEG 2000."
    raise UnsupportedTransferSyntax(msg)


def _reject_mosaic(dataset: Dataset) -> None:
    if "MOSAIC" in (dataset.get("ImageType") or []):
        msg = "A mosaic was found: Siemens stores all slices of a volume as tiles of one image. Convert the series to NIfTI, e.g. by dcm2niix, and send one volume of it."
        raise UnsupportedDimensions(msg)


def _reject_voxel_type(dataset: Dataset) -> None:
    grey = dataset.SamplesPerPixel == 1 and dataset.PhotometricInterpretation in ("MONOCHROME1", "MONOCHROME2")
    if not grey or dataset.BitsAllocated not in (8, 16, 32) or "ModalityLUTSequence" in dataset:
        msg = "DICOM images in colour, of one bit, or with a table for their intensities were found; grey values with slope and intercept are expected. Send the original series."
        raise UnsupportedVoxelType(msg)


def _frames(dataset: Dataset) -> int:
    return int(dataset.get("NumberOfFrames") or 1)


def _reject_length(dataset: Dataset) -> None:
    """Check the length of uncompressed voxels (PS3.5 8.1.1: padded to an even length)."""
    if dataset.file_meta.TransferSyntaxUID not in _NATIVE:
        return
    expected = dataset.Rows * dataset.Columns * _frames(dataset) * dataset.BitsAllocated // 8
    stored = dataset.get("PixelData") or b""
    size = len(stored)
    if size < expected:
        msg = f"A DICOM file announces {expected} bytes of voxels; {size} were found. It is cut short: send the whole series again."
        raise PayloadTruncated(msg)
    # Zeros behind the voxels are padding: to an even length by the standard, to a block's by some archives.
    if size > expected + expected % 2 and any(stored[expected:]):
        msg = f"A DICOM file announces {expected} bytes of voxels; {size} were found. Export the series again."
        raise PayloadTooLong(msg)


def _slice(dataset: Dataset, frame: int, stated: Stated, *, with_voxels: bool) -> Slice:
    place = place_of(dataset, frame)
    rescale = _rescale(dataset, frame)
    position = _numbers(place, "ImagePositionPatient", 3, MissingOrientation)
    orientation = _orientation(_numbers(place, "ImageOrientationPatient", 6, MissingOrientation))
    spacing = _numbers(place, "PixelSpacing", 2, InvalidSpacing)
    if not ((spacing >= EXTREMES_MM[0]) & (spacing <= EXTREMES_MM[1])).all():
        msg = "The distance between the voxels of a DICOM image is zero, negative or not a number. Export the series again."
        raise InvalidSpacing(msg)
    return Slice(
        series=str(dataset.SeriesInstanceUID),
        modality=str(dataset.get("Modality") or ""),
        number=str(dataset.get("SeriesNumber") or ""),
        instance=str(dataset.SOPInstanceUID),
        frame=frame,
        frame_of_reference=str(dataset.get("FrameOfReferenceUID") or ""),
        localizer="LOCALIZER" in (dataset.get("ImageType") or []),
        inverted=dataset.PhotometricInterpretation == "MONOCHROME1",
        shape=(int(dataset.Rows), int(dataset.Columns)),
        spacing_mm=spacing,
        orientation=orientation,
        position_mm=position,
        rescale=rescale,
        padding=_padding(dataset),
        digest=_digest(dataset, frame),
        acquired=tuple(_separator(dataset, frame, name) for name in SEPARATORS.values()),
        stated=stated,
        dataset=dataset if with_voxels else None,
    )


def _separator(dataset: Dataset, frame: int, name: str) -> str:
    """Return an attribute of `SEPARATORS` as text, wherever the file stores it; empty if it has none."""
    value = dataset.get(name)
    if name in _IN_GROUPS and "PerFrameFunctionalGroupsSequence" in dataset:
        group_name, in_group = _IN_GROUPS[name]
        group = _group(dataset, frame, group_name)
        value = value if group is None else group.get(in_group, value)
    if value is None and name == "DiffusionBValue":
        value = _private_b_value(dataset)
    return "" if value is None else str(value)


def _private_b_value(dataset: Dataset) -> object:
    for group, creator, element in _PRIVATE_B_VALUES:
        with suppress(KeyError):
            return dataset.private_block(group, creator)[element].value
    return None


def place_of(dataset: Dataset, frame: int) -> Dataset:
    """Return a dataset with the position, orientation and spacing of a frame, wherever the file stores them."""
    if "PerFrameFunctionalGroupsSequence" not in dataset:
        return dataset
    place = Dataset()
    for name in _GROUPS:
        group = _group(dataset, frame, name)
        if group is not None:
            place.update(group)
    return place


def _group(dataset: Dataset, frame: int, name: str) -> Dataset | None:
    """Return the item of a functional group: the frame's own, or the one shared by all frames."""
    own = dataset.PerFrameFunctionalGroupsSequence[frame]
    shared = dataset.get("SharedFunctionalGroupsSequence") or [Dataset()]
    sequence = own.get(name) or shared[0].get(name)
    return sequence[0] if sequence else None


def _rescale(dataset: Dataset, frame: int) -> tuple[float, float]:
    source: Dataset | None = dataset
    if "PerFrameFunctionalGroupsSequence" in dataset:
        source = _group(dataset, frame, "PixelValueTransformationSequence")
    slope, intercept = (1.0, 0.0) if source is None else _rescale_of(source)
    if not np.isfinite([slope, intercept]).all() or slope == 0:
        msg = "The slope or intercept of a DICOM image is not a number, or the slope is 0. Export the series again."
        raise InvalidHeader(msg)
    return slope, intercept


def _rescale_of(source: Dataset) -> tuple[float, float]:
    slope, intercept = source.get("RescaleSlope"), source.get("RescaleIntercept")
    return 1.0 if slope is None else float(slope), 0.0 if intercept is None else float(intercept)


def _padding(dataset: Dataset) -> tuple[int, int] | None:
    """Return the range of stored values that are padding: Pixel Padding Value alone, or with its Range Limit."""
    value = _stored_value(dataset, "PixelPaddingValue")
    if value is None:
        return None
    limit = _stored_value(dataset, "PixelPaddingRangeLimit")
    other = value if limit is None else limit
    return min(value, other), max(value, other)


def _stored_value(dataset: Dataset, name: str) -> int | None:
    """Return an attribute in the type of the stored voxels; None if it is absent or no single integer.

    Many files write a negative padding as an unsigned number of the same bits.
    """
    value = dataset.get(name)
    if not isinstance(value, int):
        return None
    bits = int(dataset.BitsAllocated)
    wrapped = value % (1 << bits)
    return wrapped - (1 << bits) if dataset.PixelRepresentation == 1 and wrapped >> (bits - 1) else wrapped


def _numbers(place: Dataset, name: str, count: int, error: type[CalibrantError]) -> npt.NDArray[np.float64]:
    values = place.get(name)
    if values is None or len(values) != count:
        msg = f"A DICOM image lacks {name}, so its place in the patient is unknown. Send the original series, not screen shots."
        raise error(msg)
    numbers = np.array([float(value) for value in values])
    if not (np.abs(numbers) <= EXTREMES_MM[1]).all():  # false for NaN, too
        msg = f"A DICOM image's {name} holds values that are not finite or far outside a body. Export the series again."
        raise InvalidAffine(msg)
    return numbers


def _orientation(cosines: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the two directions, made exactly orthonormal: files round them to as few as three digits."""
    row, column = cosines[:3], cosines[3:]
    lengths = np.linalg.norm([row, column], axis=1)
    if not (np.abs(lengths - 1) <= _ROUNDING).all() or abs(row @ column) > _ROUNDING:
        msg = "The directions of a DICOM image are not at right angles or not of length 1. Export the series again."
        raise InvalidAffine(msg)
    row = row / lengths[0]
    column = column - row * (row @ column)
    return np.array([row, column / np.linalg.norm(column)])


def _digest(dataset: Dataset, frame: int) -> bytes:
    stored = memoryview(dataset.get("PixelData") or b"")
    if dataset.file_meta.TransferSyntaxUID in _NATIVE:
        size = dataset.Rows * dataset.Columns * dataset.BitsAllocated // 8
        return hashlib.sha256(stored[frame * size : (frame + 1) * size]).digest()
    return hashlib.sha256(stored).digest() + frame.to_bytes(4)
