"""A zip of one DICOM series -> Volume.

Never a DICOMDIR, never a name: the files of the zip are looked at one by one, and what they say of themselves decides.
"""

from typing import BinaryIO, Final

import numpy as np

from service.errors import DuplicateInstance, MultipleSeries, NoDicom
from service.intake.dicom.instance import Slice, read_instance
from service.intake.dicom.source import describe_source
from service.intake.dicom.stack import stack
from service.intake.formats.archive import read_members
from service.intake.formats.geometry import nifti_header
from service.volume import Volume

MAX_STRAYS: Final = 3
"""Most images of another orientation or size that are left out as localizers that do not say so."""

ORIENTATION_TOLERANCE: Final = 1e-3
"""Difference of direction cosines below which slices are parallel; files round them to as few as three digits."""

_SPACING_TOLERANCE = 1e-3


def decode(file: BinaryIO) -> Volume:
    """Return the volume of a series: float32 intensities after slope and intercept, axes column, row, slice.

    Raises:
        ScanError: the kind says what is wrong; nothing of the files' content is in the message.
    """
    found, warnings = _series(file, with_voxels=True)
    slices, affine = stack(found)
    rows, columns = slices[0].shape
    shape = (columns, rows, len(slices))
    array = np.empty(shape, np.float32, order="F")
    for k, each in enumerate(slices):
        array[..., k] = each.intensities().T
    header = nifti_header(shape, affine, array.dtype)
    return Volume(array[np.newaxis], affine, header, tuple(warnings), describe_source(slices))


def check(file: BinaryIO) -> None:
    """Raise what `decode` would raise, except that compressed voxels are not decoded."""
    slices, _ = _series(file, with_voxels=False)
    stack(slices)


def _series(file: BinaryIO, *, with_voxels: bool) -> tuple[list[Slice], list[str]]:
    slices, warnings = _slices(file, with_voxels=with_voxels)
    _reject_mixture("series", {each.series for each in slices})
    slices = _distinct(slices, warnings)
    slices = _largest_stack(slices, warnings)
    _reject_mixture("frames of reference", {each.frame_of_reference for each in slices})
    if any(each.inverted for each in slices):
        # PS3.3 C.7.6.3.1.2 speaks of the display; Hounsfield units are what they are.
        warnings.append("The images ask to be displayed inverted (MONOCHROME1); their intensities were used as stored.")
    return slices, warnings


def _slices(file: BinaryIO, *, with_voxels: bool) -> tuple[list[Slice], list[str]]:
    slices: list[Slice] = []
    others = objects = 0
    for content in read_members(file):
        if content[128:132] != b"DICM":
            others += 1
            continue
        found = read_instance(content, with_voxels=with_voxels)
        objects += not found
        slices += found
    if not slices:
        msg = f"No CT, MR or PET image was found in the zip, but {objects} other DICOM files and {others} files that are not DICOM. Zip the DICOM files of one series."
        raise NoDicom(msg)
    warnings = []
    if others:
        warnings.append(f"{others} files of the zip are not DICOM and were left out.")
    if objects:
        warnings.append(f"{objects} DICOM files of the zip are no CT, MR or PET images and were left out.")
    return slices, warnings


def _reject_mixture(what: str, found: set[str]) -> None:
    if len(found) > 1:
        msg = f"{len(found)} {what} were found in the zip; one is expected. Zip the files of one series only."
        raise MultipleSeries(msg)


def _distinct(slices: list[Slice], warnings: list[str]) -> list[Slice]:
    """Return the slices without exact copies; refuse an identifier that stands for two different images."""
    first: dict[tuple[str, int], Slice] = {}
    for each in slices:
        known = first.setdefault((each.instance, each.frame), each)
        if known is not each and not _are_copies(known, each):
            msg = "Two different DICOM images have the same identifier (SOP Instance UID). Export the series again."
            raise DuplicateInstance(msg)
    if len(first) < len(slices):
        warnings.append(f"{len(slices) - len(first)} files of the zip are copies of others and were left out.")
    return list(first.values())


def _are_copies(one: Slice, other: Slice) -> bool:
    return (one.digest, one.rescale) == (other.digest, other.rescale) and np.array_equal(
        one.position_mm, other.position_mm
    )


def _largest_stack(slices: list[Slice], warnings: list[str]) -> list[Slice]:
    """Return the largest set of parallel slices of one size, without localizers; refuse a mixture of several."""
    images = [each for each in slices if not each.localizer] or slices
    stacks: list[list[Slice]] = []
    for each in images:
        mates = next((mates for mates in stacks if _are_parallel(mates[0], each)), None)
        if mates is None:
            stacks.append([each])
        else:
            mates.append(each)
    largest = max(stacks, key=len)
    strays = len(images) - len(largest)
    if strays > min(MAX_STRAYS, len(largest) // 2):
        msg = f"The series holds {len(stacks)} stacks of different orientation, size or voxel size, of {', '.join(str(len(each)) for each in stacks[:5])} images; one is expected. Send one of them."
        raise MultipleSeries(msg)
    if len(largest) < len(slices):
        warnings.append(
            f"{len(slices) - len(largest)} images of the series are localizers or lie in another orientation, and were left out."
        )
    return largest


def _are_parallel(one: Slice, other: Slice) -> bool:
    return (
        one.shape == other.shape
        and np.allclose(one.orientation, other.orientation, rtol=0, atol=ORIENTATION_TOLERANCE)
        and np.allclose(one.spacing_mm, other.spacing_mm, rtol=_SPACING_TOLERANCE, atol=0)
    )
