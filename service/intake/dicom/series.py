"""A zip of one DICOM series, or one DICOM file of all its frames -> Volume.

Every file of the zip is read, and its own header decides; DICOMDIR and file names are ignored.
"""

from collections import Counter
from collections.abc import Iterator
from typing import BinaryIO, Final

import numpy as np

from service.errors import DuplicateInstance, MultipleSeries, NoDicom, UnsupportedDimensions
from service.intake.dicom import part10
from service.intake.dicom.instance import Slice, read_instance
from service.intake.dicom.mixture import SeriesInArchive, several_series
from service.intake.dicom.source import describe_source
from service.intake.dicom.stack import stack
from service.intake.dicom.stated import stated_together
from service.intake.formats import archive
from service.intake.formats.geometry import bytes_of, nifti_header, reject_bomb
from service.volume import Stated, Volume

MAX_STRAYS: Final = 3
"""Maximum number of images of another orientation or size that are left out as unmarked localizers."""

ORIENTATION_TOLERANCE: Final = 1e-3
"""Difference of direction cosines below which slices are parallel; files round them to as few as three digits."""

_SPACING_TOLERANCE = 1e-3


def decode(file: BinaryIO) -> Volume:
    """Return the volume of a series: float32 intensities after slope and intercept, axes column, row, slice.

    Declared padding gets the lowest intensity of the other voxels, so that it is no extreme of anything.

    Raises:
        ScanError: its class says what is wrong; the message holds nothing of the files' content.
    """
    images, warnings = _series(file, with_voxels=True)
    slices, affine = stack(images)
    shape = _shape_of(slices)
    reject_bomb(shape, bytes_of(file))
    array = np.empty(shape, np.float32, order="F")
    padding = np.zeros(shape, np.bool_, order="F") if any(image.padding for image in slices) else None
    for k, image in enumerate(slices):
        intensities, nothing = image.intensities_and_padding()
        array[..., k] = intensities.T
        if padding is not None and nothing is not None:
            padding[..., k] = nothing.T
    if padding is not None and not padding.any():
        padding = None
    if padding is not None:
        array[padding] = np.min(array, where=~padding, initial=np.inf) if not padding.all() else 0
    header = nifti_header(shape, affine, array.dtype)
    stated = stated_together(image.stated for image in slices)
    return Volume(array[np.newaxis], affine, header, tuple(warnings), describe_source(slices), padding, stated)


def check(file: BinaryIO) -> Stated:
    """Raise what `decode` would raise, except that compressed voxels are not decoded; return what the series states."""
    slices, _ = _series(file, with_voxels=False)
    slices, _ = stack(slices)
    reject_bomb(_shape_of(slices), bytes_of(file))
    return stated_together(image.stated for image in slices)


def _shape_of(slices: list[Slice]) -> tuple[int, int, int]:
    rows, columns = slices[0].shape
    return columns, rows, len(slices)


def _series(file: BinaryIO, *, with_voxels: bool) -> tuple[list[Slice], list[str]]:
    slices, warnings = _slices(file, with_voxels=with_voxels)
    _reject_several_series(slices)
    slices = _distinct(slices, warnings)
    slices = _largest_stack(slices, warnings)
    _reject_mixture("frames of reference", {image.frame_of_reference for image in slices})
    if any(image.inverted for image in slices):
        # PS3.3 C.7.6.3.1.2 is about the display; it does not change the intensities.
        warnings.append("The images ask to be displayed inverted (MONOCHROME1); their intensities were used as stored.")
    return slices, warnings


def _slices(file: BinaryIO, *, with_voxels: bool) -> tuple[list[Slice], list[str]]:
    slices: list[Slice] = []
    others = objects = headless = 0
    unpacked = archive.Unpacked.of(bytes_of(file))
    for content in _contents(file, unpacked):
        if not part10.recognise(content[: part10.START_BYTES]):
            others += 1
            headless += part10.lacks_header(content[: part10.START_BYTES])
            continue
        images = read_instance(content, unpacked, with_voxels=with_voxels)
        objects += not images
        slices += images
    if not slices and headless:
        raise NoDicom(part10.WITHOUT_HEADER)
    if not slices:
        msg = f"No CT, MR or PET image was found, but {objects} other DICOM files and {others} files that are not DICOM. Zip the DICOM files of one series."
        raise NoDicom(msg)
    if len(slices) == 1 and not others and not objects and not _is_zip(file):
        msg = "A DICOM file of a single image was found. Send all files of its series in one .zip; `calibrant predict` also takes their folder."
        raise UnsupportedDimensions(msg)
    warnings = []
    if others:
        warnings.append(f"{others} files of the zip are not DICOM and were left out.")
    if objects:
        warnings.append(f"{objects} DICOM files of the zip are no CT, MR or PET images and were left out.")
    return slices, warnings


def _contents(file: BinaryIO, unpacked: archive.Unpacked) -> Iterator[bytes]:
    """Yield the content of each file of a zip, or that of a DICOM file."""
    if _is_zip(file):
        yield from archive.read_members(file, unpacked)
    else:
        yield file.read()


def _is_zip(file: BinaryIO) -> bool:
    file.seek(0)
    start = file.read(part10.START_BYTES)
    file.seek(0)
    return archive.recognise(start) and not part10.recognise(start)


def _reject_several_series(slices: list[Slice]) -> None:
    counted = Counter((image.series, image.modality, image.number) for image in slices)
    by_uid = {uid: (modality, number) for uid, modality, number in counted}
    if len(by_uid) > 1:
        images = Counter(image.series for image in slices)
        raise several_series(SeriesInArchive(uid, *of_uid, images[uid]) for uid, of_uid in by_uid.items())


def _reject_mixture(what: str, values: set[str]) -> None:
    if len(values) > 1:
        msg = f"{len(values)} {what} were found in the zip; one is expected. Zip the files of one series only."
        raise MultipleSeries(msg)


def _distinct(slices: list[Slice], warnings: list[str]) -> list[Slice]:
    """Return the slices without exact copies; refuse an identifier shared by two different images."""
    first: dict[tuple[str, int], Slice] = {}
    for image in slices:
        known = first.setdefault((image.instance, image.frame), image)
        if known is not image and not _are_copies(known, image):
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
    """Return the largest stack of parallel slices of one size, without localizers; refuse a mixture of several stacks."""
    images = [image for image in slices if not image.localizer] or slices
    stacks: list[list[Slice]] = []
    for image in images:
        parallel = next((members for members in stacks if _are_parallel(members[0], image)), None)
        if parallel is None:
            stacks.append([image])
        else:
            parallel.append(image)
    largest = max(stacks, key=len)
    strays = len(images) - len(largest)
    if strays > min(MAX_STRAYS, len(largest) // 2):
        msg = f"The series holds {len(stacks)} stacks of different orientation, size or voxel size, of {', '.join(str(len(members)) for members in stacks[:5])} images; one is expected. Send one of them."
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
