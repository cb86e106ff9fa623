from pathlib import Path

import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, MRImageStorage

from service.commands.batch.dicom import find_series, is_dicom
from service.commands.batch.source import find_cases


def write(path: Path, uid: str, modality: str = "MR") -> Path:
    """Write a DICOM file without voxels."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = MRImageStorage
    meta.MediaStorageSOPInstanceUID = UID("1.2.3")
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
    dataset.SOPClassUID, dataset.SOPInstanceUID = MRImageStorage, "1.2.3"
    dataset.SeriesInstanceUID, dataset.Modality = uid, modality
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def test_series_are_found_by_header_not_by_folder(tmp_path: Path) -> None:
    """Files of one SeriesInstanceUID in two folders, without extension, are one case."""
    paths = [write(tmp_path / name, uid) for name, uid in (("a/1", "1.5"), ("b/2", "1.5"), ("a/3", "1.7"))]
    first, second = find_cases(tmp_path, tmp_path / "out").cases

    assert (first.id, first.files, first.is_series) == ("1.5", (paths[0], paths[1]), True)
    assert (second.id, second.files, second.is_series) == ("1.7", (paths[2],), True)


def test_other_objects_are_left_out(tmp_path: Path) -> None:
    """A segmentation, a file without a series and a damaged file are left out with reasons."""
    damaged = tmp_path / "damaged"
    damaged.write_bytes(bytes(128) + b"DICM" + b"\xff" * 40)
    found = find_series([write(tmp_path / "seg", "1.5", "SEG"), write(tmp_path / "none", ""), damaged])

    assert found.cases == []
    assert [skipped.path.name for skipped in found.skipped] == ["seg", "none", "damaged"]
    assert all("DICOM" in skipped.reason for skipped in found.skipped)


@pytest.mark.parametrize(("content", "expected"), [(bytes(128) + b"DICM", True), (b"DICM", False), (b"", False)])
def test_dicom_is_known_by_its_prefix(tmp_path: Path, content: bytes, *, expected: bool) -> None:
    """DICOM files are recognised by the prefix after the preamble, not by name."""
    (tmp_path / "f").write_bytes(content)

    assert is_dicom(tmp_path / "f") is expected


def test_a_folder_in_a_manifest_is_one_series(tmp_path: Path) -> None:
    """The DICOM files of the folder are one series; other files are ignored."""
    path = write(tmp_path / "series" / "1.dcm", "1.5")
    (tmp_path / "series" / "notes.txt").touch()
    (tmp_path / "m.csv").write_text("id,path\na,series\n")
    (case,) = find_cases(tmp_path / "m.csv", tmp_path / "out").cases

    assert (case.id, case.files, case.is_series) == ("a", (path,), True)
