import gzip
import io
import struct
from collections.abc import Callable
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest

from service import errors
from service.errors import ScanError
from service.intake.formats import mgh as reader
from tests.service.intake.formats.contract import PHANTOM, ScanFormatContract, refusal_of

FIELDS = {"version": 0, "width": 4, "height": 8, "depth": 12, "frames": 16, "type": 20}
"""Offsets of the header's integers (MghFormat), all big-endian and of 32 bits."""

GOOD_RAS_AT, DELTA_AT, MDC_AT, CENTRE_AT = 28, 30, 42, 78


def make_mgh(array: npt.NDArray[Any], affine: npt.NDArray[np.float64]) -> bytes:
    """Return an .mgh file as nibabel writes it."""
    return bytes(nib.freesurfer.mghformat.MGHImage(array, affine).to_bytes())


def changed(content: bytes, **fields: int) -> bytes:
    """Return a file with other integers in its header."""
    file = bytearray(content)
    for name, value in fields.items():
        struct.pack_into(">i", file, FIELDS[name], value)
    return bytes(file)


@pytest.fixture(name="good")
def good_(oblique: npt.NDArray[np.float64]) -> bytes:
    """Return the phantom as .mgh at the oblique place."""
    return make_mgh(PHANTOM, oblique)


class TestMgh(ScanFormatContract):
    """FreeSurfer's format is read as every format is."""

    reader = reader

    @pytest.fixture(params=["plain", "gzip"])
    def sample(self, request: pytest.FixtureRequest, good: bytes) -> bytes:
        """Return the phantom as .mgh or .mgz, without the scan parameters that may follow the voxels."""
        plain = good[: 284 + 2 * PHANTOM.size]
        return plain if request.param == "plain" else gzip.compress(plain)

    def test_a_file_is_recognised_by_its_first_bytes(self, good: bytes) -> None:
        """A reader claims its own files and leaves text and empty files to others; gzip is looked into by `decode`."""
        assert reader.recognise(good[:132])
        assert not reader.recognise(b"")
        assert not reader.recognise(b"\x00\x00\x01\x00")


@pytest.mark.parametrize("voxel_type", ["u1", "i2", "i4", "f4"])
@pytest.mark.parametrize("shape", [(5, 6, 7), (4, 9, 2)], ids=str)
def test_every_voxel_type_is_read_as_by_nibabel(
    voxel_type: str, shape: tuple[int, ...], oblique: npt.NDArray[np.float64]
) -> None:
    """Voxels are native and equal; the place is that of nibabel, for odd and even sizes."""
    array = np.random.default_rng(1).integers(0, 200, shape).astype(voxel_type)
    content = make_mgh(array, oblique)
    image = nib.freesurfer.mghformat.MGHImage.from_bytes(content)

    volume = reader.decode(io.BytesIO(content))

    np.testing.assert_array_equal(volume.array_CDHW[0], array)
    assert volume.array_CDHW.dtype.isnative
    np.testing.assert_allclose(volume.affine, image.affine, atol=1e-5)


def test_a_fourth_axis_of_one_frame_and_tags_are_dropped(good: bytes) -> None:
    """What follows the voxels, scan parameters and tags, changes nothing."""
    volume = reader.decode(io.BytesIO(good + bytes(5000)))

    np.testing.assert_array_equal(volume.array_CDHW[0], PHANTOM)


def unplaced(content: bytes) -> bytes:
    """Return a file whose header says that it knows no orientation."""
    return content[:GOOD_RAS_AT] + b"\0\0" + content[GOOD_RAS_AT + 2 :]


def floats(content: bytes, at: int, *values: float) -> bytes:
    """Return a file with other floats in its header."""
    packed = struct.pack(f">{len(values)}f", *values)
    return content[:at] + packed + content[at + len(packed) :]


REFUSED: dict[str, tuple[Callable[[bytes], bytes], type[ScanError]]] = {
    "two frames": (lambda good: changed(good, frames=2), errors.UnsupportedDimensions),
    "one slice": (lambda good: changed(good, depth=1, height=30), errors.UnsupportedDimensions),
    "no slice": (lambda good: changed(good, depth=0), errors.UnsupportedDimensions),
    "negative": (lambda good: changed(good, width=-4), errors.UnsupportedDimensions),
    "too large": (lambda good: changed(good, width=1 << 30, height=1 << 30), errors.VolumeTooLarge),
    "unknown type": (lambda good: changed(good, type=2), errors.UnsupportedVoxelType),
    "no orientation": (unplaced, errors.MissingOrientation),
    "spacing of 0": (lambda good: floats(good, DELTA_AT, 1, 0, 1), errors.InvalidSpacing),
    "spacing of NaN": (lambda good: floats(good, DELTA_AT, 1, np.nan, 1), errors.InvalidSpacing),
    "6 m": (lambda good: floats(good, DELTA_AT, 1, 1, 1000), errors.InvalidSpacing),
    "spacing of 1e38": (lambda good: floats(good, DELTA_AT, 1e38, 1, 1), errors.InvalidAffine),
    "directions of NaN": (lambda good: floats(good, MDC_AT, np.nan), errors.InvalidHeader),
    "directions of 0": (lambda good: floats(good, MDC_AT, 0, 0, 0), errors.InvalidSpacing),
    "sheared": (lambda good: floats(good, MDC_AT, 1, 0, 0, 0.7, 0.7, 0), errors.InvalidAffine),
    "centre of infinity": (lambda good: floats(good, CENTRE_AT, np.inf), errors.InvalidHeader),
    "header cut": (lambda good: good[:283], errors.PayloadTruncated),
    "endless tags": (lambda good: good + bytes(reader.MAX_TAGS_BYTES + 1), errors.PayloadTooLong),
}


@pytest.mark.parametrize("name", REFUSED)
def test_each_fault_is_refused_for_its_own_reason(name: str, good: bytes) -> None:
    """Decoding and checking raise the same error."""
    change, error = REFUSED[name]
    refusals = [refusal_of(read, change(good)) for read in (reader.decode, reader.check)]

    assert [type(refusal) for refusal in refusals] == [error] * 2
