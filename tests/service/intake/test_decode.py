import gzip
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from pydicom.dataset import Dataset

from service.errors import (
    CalibrantError,
    EmptyBody,
    NoDicom,
    NonFiniteVoxels,
    ScanError,
    UnrecognisedFormat,
    UnsafeHeader,
    VolumeTooLarge,
)
from service.intake.decode import MAX_VOXELS, check_scan, decode_scan
from service.intake.formats import geometry

Hostile = tuple[bytes, type[CalibrantError]]
Nifti = Callable[..., bytes]


@pytest.fixture(name="write")
def write_(tmp_path: Path) -> Callable[[bytes], Path]:
    """Return the function that writes a file with the extension that fits its first bytes."""

    def write(content: bytes) -> Path:
        path = tmp_path / ("scan.nii.gz" if content.startswith(b"\x1f\x8b") else "scan.nii")
        path.write_bytes(content)
        return path

    return write


def test_every_hostile_file_is_refused_for_its_own_reason(undecodable: Hostile, write: Callable[[bytes], Path]) -> None:
    """Each fault has its own error class, so clients can rely on the code."""
    content, error = undecodable

    with pytest.raises(ScanError) as refusal:
        decode_scan(write(content))

    assert type(refusal.value) is error


def test_no_refusal_repeats_text_of_the_file(
    undecodable: Hostile, write: Callable[[bytes], Path], canary: str, tmp_path: Path
) -> None:
    """The message holds neither header text, nor content, nor the path of the file."""
    with pytest.raises(ScanError) as refusal:
        decode_scan(write(undecodable[0]))

    assert canary not in refusal.value.detail
    assert str(tmp_path) not in refusal.value.detail
    assert refusal.value.detail.endswith(".")


def test_checking_finds_all_but_the_intensities(undecodable: Hostile, write: Callable[[bytes], Path]) -> None:
    """`check_scan` refuses what `decode_scan` refuses, except that it does not look at intensities."""
    content, error = undecodable
    path = write(content)

    if error is NonFiniteVoxels:
        check_scan(path)
    else:
        with pytest.raises(ScanError) as refusal:
            check_scan(path)
        assert type(refusal.value) is error


def test_a_scale_beyond_float32_is_refused(nifti: Nifti, write: Callable[[bytes], Path]) -> None:
    """Intensities that exceed float32 after scaling are refused as not finite, without a warning."""
    with pytest.raises(NonFiniteVoxels):
        decode_scan(write(nifti(scl_slope=3e38)))


@pytest.mark.parametrize("magnitude", [1e39, 1e300])
def test_float64_beyond_float32_is_refused(magnitude: float, nifti: Nifti, write: Callable[[bytes], Path]) -> None:
    """The network computes in float32, in which these intensities are infinite."""
    array = np.linspace(0, 1, 120).reshape(4, 5, 6) * magnitude

    with pytest.raises(NonFiniteVoxels):
        decode_scan(write(nifti(array)))


def test_the_name_of_a_file_does_not_matter(nifti: Nifti, tmp_path: Path) -> None:
    """Uploads have no extension: the first bytes decide whether a file is gzipped."""
    plain, packed = tmp_path / "a.nii.gz", tmp_path / "b"
    plain.write_bytes(nifti())
    packed.write_bytes(gzip.compress(nifti()))

    np.testing.assert_array_equal(decode_scan(plain).array_CDHW, decode_scan(packed).array_CDHW)


def test_the_message_counts_the_useless_voxels(nifti: Nifti, write: Callable[[bytes], Path]) -> None:
    """One NaN and one infinity in 8 voxels are 2 of 8."""
    array = np.array([np.nan, np.inf, 0, 1, 2, 3, 4, 5], np.float32).reshape(2, 2, 2)

    with pytest.raises(NonFiniteVoxels, match=r"^2 of 8 voxels are NaN"):
        decode_scan(write(nifti(array)))


def test_every_format_gives_the_same_volume_in_the_same_place(
    nifti: Nifti,
    nrrd: Nifti,
    mha: Nifti,
    slices_of: Callable[..., Any],
    zip_of: Callable[..., bytes],
    write: Callable[[bytes], Path],
) -> None:
    """NIfTI, NRRD and MetaImage, plain and compressed, and DICOM give equal voxels and affines within 0.0001 mm."""
    expected = decode_scan(write(nifti()))
    voxels = np.asarray(expected.array_CDHW[0], "<i2").tobytes(order="F")
    others = [
        nrrd(),
        nrrd(gzip.compress(voxels), encoding="gzip"),
        mha(),
        mha(zlib.compress(voxels), CompressedData="True"),
        zip_of(slices_of()),
    ]

    for content in others:
        volume = decode_scan(write(content))
        np.testing.assert_array_equal(volume.array_CDHW, expected.array_CDHW)
        np.testing.assert_allclose(volume.affine, expected.affine, atol=1e-4)
        assert volume.warnings == ()


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        (b"", EmptyBody, "0 bytes"),
        (b"This is a letter.", UnrecognisedFormat, "Send a NIfTI file"),
        (bytes(128) + b"DICM", NoDicom, "1 other DICOM files"),
    ],
)
def test_a_file_of_no_known_format_is_refused_with_advice(
    content: bytes, error: type[ScanError], words: str, write: Callable[[bytes], Path]
) -> None:
    """The message says what to send instead, also for a single DICOM file."""
    with pytest.raises(error, match=words):
        check_scan(write(content))


@pytest.fixture(name="bombs")
def bombs_(
    nifti: Nifti, nrrd: Nifti, mha: Nifti, slices_of: Callable[..., list[Dataset]], zip_of: Nifti
) -> list[bytes]:
    """Return files of every packed format that hold zeros, at least 60 x 60 x 60, in as few bytes as each can."""
    zeros = np.zeros((60, 60, 60), np.uint8)
    packed, sizes = zlib.compress(zeros.tobytes(), 9), "60 60 60"
    mgh = nib.freesurfer.mghformat.MGHImage(zeros, np.eye(4)).to_bytes()
    tiles = slices_of(np.zeros((300, 300, 60), np.uint16))
    return [
        gzip.compress(nifti(zeros)),
        nrrd(gzip.compress(zeros.tobytes()), encoding="gzip", sizes=sizes, type="uchar"),
        mha(packed, CompressedData="True", DimSize=sizes, ElementType="MET_UCHAR"),
        gzip.compress(mgh),
        zip_of(tiles),
    ]


def test_f1_every_packed_format_is_refused_for_far_too_many_voxels(
    bombs: list[bytes], write: Callable[[bytes], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By checking and by decoding, before a voxel is read."""
    monkeypatch.setattr(geometry, "FEW_VOXELS", 100_000)
    for content in bombs:
        for read in (check_scan, decode_scan):
            with pytest.raises(VolumeTooLarge, match=f"in a file of {len(content)} bytes"):
                read(write(content))


def test_f15_an_endless_name_in_gzip_is_a_fault_of_the_file(write: Callable[[bytes], Path], nifti: Nifti) -> None:
    """Names of any usual length do not matter; one of a million bytes is refused for what it is."""
    packed = gzip.compress(nifti(), mtime=0)

    def named(length: int) -> bytes:
        return packed[:3] + b"\x08" + packed[4:10] + b"a" * length + b"\0" + packed[10:]

    check_scan(write(named(10_000)))
    for read in (check_scan, decode_scan):
        with pytest.raises(UnsafeHeader, match="gzip -n"):
            read(write(named(1_000_000)))


def test_the_limit_of_voxels_is_that_of_the_formats() -> None:
    """It stands in this module's interface."""
    assert MAX_VOXELS == 512 * 512 * 2048
