from pathlib import Path

import pytest

from service.intake.dicom.header import SeriesHeader, read_series_header


def test_a_real_series_has_one_header(real_series: Path) -> None:
    """All files of a real CT series have the same header, of modality CT."""
    (header,) = {read_series_header(path) for path in real_series.iterdir()}

    assert isinstance(header, SeriesHeader)
    assert header.modality == "CT"
    assert header.uid.replace(".", "").isdigit()


@pytest.mark.parametrize("content", [b"", b"text"])
def test_a_file_that_is_not_dicom_has_no_header(tmp_path: Path, content: bytes) -> None:
    """Errors of pydicom become None, whatever the file holds."""
    path = tmp_path / "file"
    path.write_bytes(content)

    assert read_series_header(path) is None


def test_missing_attributes_are_empty(tmp_path: Path) -> None:
    """A DICOM file without the two attributes gives empty strings."""
    path = tmp_path / "file"
    # Patient's Name alone, in explicit VR little endian after a file meta group of its transfer syntax.
    syntax = b"1.2.840.10008.1.2.1\0"
    meta = b"\x02\x00\x10\x00UI" + len(syntax).to_bytes(2, "little") + syntax
    group = b"\x02\x00\x00\x00UL\x04\x00" + len(meta).to_bytes(4, "little")
    path.write_bytes(bytes(128) + b"DICM" + group + meta + b"\x10\x00\x10\x00PN\x04\x00Doe ")

    assert read_series_header(path) == SeriesHeader("", "", "")
