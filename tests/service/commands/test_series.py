import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from pydicom.dataset import Dataset

from service.commands.series import one_file
from service.errors import InvalidRequest, MultipleSeries, NoDicom

Save = Callable[[Dataset], bytes]


@pytest.fixture(name="folder")
def folder_(slices_of: Callable[..., list[Dataset]], dicom_file: Save, tmp_path: Path) -> Path:
    """Return a folder with a series, in a folder below it, of files without and with preamble, and a letter."""
    folder = tmp_path / "exam"
    (folder / "a").mkdir(parents=True)
    (folder / "letter.txt").write_text("text")
    for number, image in enumerate(slices_of()):
        (folder / "a" / f"{number}").write_bytes(dicom_file(image)[132 * (number % 2) :])
    return folder


def add_series(folder: Path, images: list[Dataset], dicom_file: Save) -> None:
    """Write a second series beside the first."""
    for number, image in enumerate(images):
        image.SeriesInstanceUID, image.SeriesNumber = "1.2.55", 9
        (folder / f"b{number}.dcm").write_bytes(dicom_file(image))


def names(path: Path) -> int:
    """Return the number of files in a zip."""
    with zipfile.ZipFile(path) as archive:
        return len(archive.namelist())


def test_a_file_is_taken_as_it_is(tmp_path: Path) -> None:
    """Nothing is copied."""
    scan = tmp_path / "scan.nii"
    scan.write_bytes(b"scan")
    with one_file(scan, None) as file:
        assert file == scan


def test_the_series_of_a_folder_becomes_a_zip_of_its_name(folder: Path) -> None:
    """Files lie at any depth; the temporary zip is gone afterwards."""
    with one_file(folder, None) as file:
        assert file.name == "exam.zip"
        assert names(file) == 6
    assert not file.exists()


def test_one_of_several_series_is_chosen(
    folder: Path,
    slices_of: Callable[..., list[Dataset]],
    dicom_file: Save,
    tmp_path: Path,
    zip_of: Callable[..., bytes],
) -> None:
    """In a folder and in a zip; without a choice each is named."""
    add_series(folder, slices_of()[:4], dicom_file)
    packed = tmp_path / "exam.zip"
    packed.write_bytes(zip_of({path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}))

    with pytest.raises(MultipleSeries, match=r"1\.2\.5 \(CT, 6 images\); 1\.2\.55 \(CT, series 9, 4 images\)"):
        one_file(folder, None).__enter__()
    for scan in (folder, packed):
        with one_file(scan, "1.2.55") as file:
            assert file.name == "exam.zip"
            assert names(file) == 4
        with pytest.raises(InvalidRequest, match="not in the f"):
            one_file(scan, "1.2.56").__enter__()


def test_a_folder_without_dicom_is_refused(tmp_path: Path) -> None:
    """The message says what is expected."""
    (tmp_path / "scan.nii").write_bytes(b"")
    with pytest.raises(NoDicom, match="no DICOM image"):
        one_file(tmp_path, None).__enter__()
