"""The contract suites of scan formats: every reader keeps the first, readers of text headers also the second."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.errors import PayloadTooLong, PayloadTruncated, ScanError
from service.intake.formats.geometry import lps_to_ras
from service.volume import Volume

ITK_TYPES = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64")
DIRECTIONS = {
    "identity": np.eye(3),
    "flipped": np.diag([-1.0, 1.0, -1.0]),
    "permuted": np.eye(3)[[2, 0, 1]],
    "oblique": nib.eulerangles.euler2mat(0.3, -0.5, 0.9),
}

PHANTOM = np.arange(120, dtype=np.int16).reshape(4, 5, 6) * 7 % 9973
"""Voxels of every sample."""


class Reader(Protocol):
    """The module of a scan format."""

    def recognise(self, start: bytes, /) -> bool:
        """Return whether the first bytes of a file are of this format."""
        ...

    def decode(self, file: BinaryIO, /) -> Volume:
        """Return the volume of a file."""
        ...

    def check(self, file: BinaryIO, /) -> object:
        """Raise what `decode` would raise."""
        ...


def refusal_of(read: Callable[[BinaryIO], object], content: bytes) -> ScanError | None:
    """Return the ScanError that a file is refused with; any other exception is passed on."""
    try:
        read(io.BytesIO(content))
    except ScanError as refusal:
        return refusal
    return None


class ScanFormatContract:
    """Every reader gives the same volume in the same place, and refuses a damaged file without repeating its text."""

    reader: Reader

    @pytest.fixture
    def sample(self) -> bytes:
        """Return a file of the phantom, 4 x 5 x 6 voxels, at the oblique place."""
        raise NotImplementedError

    def decode(self, content: bytes) -> Volume:
        """Return the volume of a file's content."""
        return self.reader.decode(io.BytesIO(content))

    def test_the_phantom_is_read_in_its_place(self, sample: bytes, oblique: npt.NDArray[np.float64]) -> None:
        """Voxels are the phantom's, in native byte order, and the affine agrees within 0.0001 mm."""
        volume = self.decode(sample)

        np.testing.assert_array_equal(volume.array_CDHW, PHANTOM[np.newaxis])
        np.testing.assert_allclose(volume.affine, oblique, atol=1e-4)
        assert volume.array_CDHW.dtype.isnative
        assert volume.warnings == ()

    def test_the_header_of_results_is_nifti(self, sample: bytes) -> None:
        """It describes the same grid; nibabel reads it."""
        volume = self.decode(sample)
        header_type: type[nib.Nifti1Header] = nib.Nifti1Header if len(volume.header) == 348 else nib.Nifti2Header
        header = header_type(volume.header)

        assert header.get_data_shape() == volume.shape
        np.testing.assert_allclose(header.get_best_affine(), volume.affine, atol=1e-4)

    def test_a_good_file_passes_the_check(self, sample: bytes) -> None:
        """Checking accepts what decoding accepts."""
        assert refusal_of(self.reader.check, sample) is None

    def test_a_file_is_recognised_by_its_first_bytes(self, sample: bytes) -> None:
        """A reader claims its own files and leaves text and empty files to others."""
        assert self.reader.recognise(sample[:132])
        assert not self.reader.recognise(b"")
        assert not self.reader.recognise(b"This is a letter.")

    @pytest.mark.parametrize("part", [0.3, 0.6, 0.95])
    def test_a_truncated_file_is_refused(self, part: float, sample: bytes, canary: str) -> None:
        """Decoding and checking refuse it alike, and repeat nothing of it."""
        refusals = [
            refusal_of(read, sample[: int(part * len(sample))]) for read in (self.reader.decode, self.reader.check)
        ]

        assert {type(refusal) for refusal in refusals} == {PayloadTruncated}
        assert not any(canary in refusal.detail for refusal in refusals if refusal)


class PlainFormatContract(ScanFormatContract):
    """The voxels lie uncompressed behind a header in the same file."""

    @pytest.fixture
    def header_bytes(self, sample: bytes) -> int:
        """Return the length of the sample's header, in which a test may change bytes."""
        return len(sample) - 240

    def test_one_more_byte_is_refused(self, sample: bytes) -> None:
        """Nothing may follow the voxels that the header announces."""
        for read in (self.reader.decode, self.reader.check):
            assert type(refusal_of(read, sample + b"\0")) is PayloadTooLong

    @given(data=st.data())
    @settings(suppress_health_check=[HealthCheck.differing_executors, HealthCheck.function_scoped_fixture])
    @pytest.mark.filterwarnings("ignore::RuntimeWarning")
    def test_a_damaged_header_is_read_or_refused(
        self, data: st.DataObject, sample: bytes, header_bytes: int, canary: str
    ) -> None:
        """Whatever bytes the header holds, the outcome is a volume or a ScanError without the file's text."""
        content = bytearray(sample)
        for _ in range(data.draw(st.integers(1, 4))):
            position = data.draw(st.integers(0, header_bytes - 1))
            content[position : position + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))

        if (refusal := refusal_of(self.reader.decode, bytes(content))) is not None:
            assert canary not in refusal.detail
        else:
            assert np.isfinite(self.decode(bytes(content)).affine).all()


class TextHeaderContract(PlainFormatContract):
    """What ITK writes is read as ITK reads it."""

    suffix: str

    @pytest.mark.parametrize("compress", [False, True], ids=["raw", "compressed"])
    @pytest.mark.parametrize("direction", DIRECTIONS.values(), ids=DIRECTIONS)
    def test_a_file_of_itk_is_read_as_by_itk(
        self,
        direction: npt.NDArray[np.float64],
        compress: bool,  # noqa: FBT001 - a parameter of the test
        tmp_path: Path,
    ) -> None:
        """Voxels and place of flipped, permuted and oblique volumes are those of the image that SimpleITK wrote."""
        array = np.random.default_rng(1).normal(size=(5, 6, 7)).astype(np.float32)
        path = tmp_path / f"scan{self.suffix}"
        image = write_with_itk(path, array, direction, compress=compress)

        volume = self.decode(path.read_bytes())

        np.testing.assert_array_equal(volume.array_CDHW[0], array)
        np.testing.assert_allclose(volume.affine, affine_of(image), atol=1e-6)

    @pytest.mark.parametrize("voxel_type", ITK_TYPES)
    def test_every_voxel_type_of_itk_is_read(self, voxel_type: str, tmp_path: Path) -> None:
        """Integers of 8 to 64 bits and both floats keep type and value."""
        array = (np.arange(60).reshape(3, 4, 5) * 2 - 60).astype(voxel_type)
        path = tmp_path / f"scan{self.suffix}"
        write_with_itk(path, array, np.eye(3), compress=False)

        volume = self.decode(path.read_bytes())

        assert volume.array_CDHW.dtype == np.dtype(voxel_type)
        np.testing.assert_array_equal(volume.array_CDHW[0], array)


def write_with_itk(
    path: Path, array: npt.NDArray[Any], direction: npt.NDArray[np.float64], *, compress: bool
) -> SimpleITK.Image:
    """Write an array (i, j, k) with SimpleITK and return its image."""
    image = SimpleITK.GetImageFromArray(array.T)
    image.SetSpacing((0.7, 1.1, 2.3))
    image.SetOrigin((-10.25, 20.5, 33))
    image.SetDirection(direction.ravel().tolist())
    SimpleITK.WriteImage(image, path, useCompression=compress)
    return image


def affine_of(image: SimpleITK.Image) -> npt.NDArray[np.float64]:
    """Return the RAS affine of an ITK image."""
    lps = np.eye(4)
    lps[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    lps[:3, 3] = image.GetOrigin()
    return lps_to_ras(lps)
