import io

import numpy as np
import pytest

from service.errors import InvalidHeader, PayloadTooLong, PayloadTruncated, ScanError, UnsupportedDimensions
from service.intake.formats.layout import Layout, check_volume, read_sizes, read_volume
from service.intake.formats.textheader import Fields


def layout_of(voxels: bytes, dtype: str = "<i2") -> Layout:
    """Return a layout of 2 x 3 x 4 voxels of 1 mm before these bytes."""
    return Layout([2, 3, 4], np.dtype(dtype), np.eye(4), io.BytesIO(voxels))


def test_the_first_index_is_the_fastest() -> None:
    """Voxels of either byte order become native numbers in the order of the file."""
    stored = np.arange(24, dtype=">i2")

    volume = read_volume(layout_of(stored.tobytes(), ">i2"))

    assert volume.array_CDHW[0, :, 0, 0].tolist() == [0, 1]
    assert volume.array_CDHW[0, 0, :, 0].tolist() == [0, 2, 4]
    assert volume.array_CDHW.dtype == np.dtype("int16")
    assert volume.array_CDHW.dtype.isnative


@pytest.mark.parametrize(("size", "error"), [(47, PayloadTruncated), (49, PayloadTooLong)])
def test_reading_and_checking_count_the_same_bytes(size: int, error: type[ScanError]) -> None:
    """24 voxels of 2 bytes are 48 bytes, neither fewer nor more."""
    for read in (read_volume, check_volume):
        with pytest.raises(error):
            read(layout_of(bytes(size)))
    check_volume(layout_of(bytes(48)))


@pytest.mark.parametrize(
    ("text", "rank", "error"),
    [
        ("4 5", 3, InvalidHeader),
        ("4 5 6 1", 3, InvalidHeader),
        ("4 5 x", 3, InvalidHeader),
        ("4 5 0", 3, UnsupportedDimensions),
        ("4 5 -6", 3, UnsupportedDimensions),
        ("4 5", 2, UnsupportedDimensions),
        ("4 5 6 1 1 1 1 1", 8, UnsupportedDimensions),
    ],
)
def test_sizes_are_as_many_as_the_axes_and_positive(text: str, rank: int, error: type[ScanError]) -> None:
    """Any other field is refused, and a rank that no volume has."""
    with pytest.raises(error):
        read_sizes(Fields([("sizes", text)]), "sizes", rank)
    assert read_sizes(Fields([("sizes", "4 5 6 1")]), "sizes", 4) == [4, 5, 6, 1]
