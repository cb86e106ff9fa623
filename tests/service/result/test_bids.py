import csv
import hashlib
import io
import json
import zipfile
from pathlib import Path

import pytest

from service.bundle.description import describe_bundle
from service.bundle.registry import SHIPPED
from service.result.bids import write_zip
from service.result.files import FRAME, SUMMARY
from service.result.frame import Frame
from service.schemas import Statement, StatementStatus, Summary

STEM = "sub-7f/anat/sub-7f_space-orig_seg-hippocampusmr"


@pytest.fixture(name="result")
def result_(tmp_path: Path) -> Path:
    """Return the folder of a result of the shipped bundle."""
    folder = tmp_path / "result"
    folder.mkdir()
    frame = Frame(
        scan_shape=(1, 1, 1), orientation=[(0, 1), (1, 1), (2, 1)], oriented_shape=(1, 1, 1), network_shape=(1, 1, 1), step=(1, 1, 1),
        affine=[[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], header="",
        config=describe_bundle(SHIPPED / "hippocampus-mr").config,
    )  # fmt: skip
    (folder / FRAME).write_text(frame.model_dump_json())
    for name in ("mask.nii.gz", "confidence.nii.gz", "summary.json", "result.json", "logits.npy.gz"):
        (folder / name).write_bytes(f"content of {name}".encode())
    (folder / SUMMARY).write_text(summary_with("holds").model_dump_json())
    return folder


def summary_with(status: StatementStatus) -> Summary:
    """Return a summary with this verdict."""
    statement = Statement(
        status=status, text="Text.", reasons=[], dataset="d", split="s", protocol="p", n_persons=1, n_cases=1,
        date="2026-11-23", engine="torch", precision="fp32", figures=None,
    )  # fmt: skip
    return Summary(model="m@0", structures=[], foreground_confidence=None, statement=statement, warnings=[])


def test_the_zip_of_a_withdrawn_result_says_so_first(result: Path) -> None:
    """The README begins with the mark; that of other results does not."""
    with zipped(result) as archive:
        assert archive.read("README.md").startswith(b"Segmentation")
    (result / SUMMARY).write_text(summary_with("withdrawn").model_dump_json())
    with zipped(result) as archive:
        assert archive.read("README.md").startswith(b"WITHDRAWN: Segmentation")


def zipped(result: Path) -> zipfile.ZipFile:
    """Return the zip of a result."""
    out = result.parent / "bundle.zip"
    write_zip(result, "7f", out)
    return zipfile.ZipFile(out)


def test_names_are_those_of_bids_derivatives(result: Path) -> None:
    """Each image is followed by its sidecars; the logits are left out."""
    with zipped(result) as archive:
        assert archive.namelist() == [
            "dataset_description.json",
            "README.md",
            ".bidsignore",
            f"{STEM}_dseg.nii.gz",
            f"{STEM}_dseg.json",
            f"{STEM}_dseg.tsv",
            f"{STEM}_desc-confidence_probseg.nii.gz",
            f"{STEM}_desc-confidence_probseg.json",
            "sub-7f/sub-7f_summary.json",
            "sub-7f/sub-7f_result.json",
        ]
        assert archive.testzip() is None
        assert archive.read(f"{STEM}_dseg.nii.gz") == b"content of mask.nii.gz"
        assert {member.compress_type for member in archive.infolist()} == {zipfile.ZIP_STORED}
        assert json.loads(archive.read("dataset_description.json"))["DatasetType"] == "derivative"
        assert json.loads(archive.read(f"{STEM}_dseg.json"))["SpatialReference"] == "orig"


def test_the_label_table_holds_values_names_and_colours(result: Path) -> None:
    """The columns of the .tsv are index, name, abbreviation and color."""
    with zipped(result) as archive:
        rows = list(csv.DictReader(io.StringIO(archive.read(f"{STEM}_dseg.tsv").decode()), delimiter="\t"))

    assert rows == [
        {"index": "0", "name": "background", "abbreviation": "BAC", "color": "#000000"},
        {"index": "1", "name": "anterior hippocampus", "abbreviation": "AH", "color": "#e69f00"},
        {"index": "2", "name": "posterior hippocampus", "abbreviation": "PH", "color": "#56b4e9"},
    ]


def test_the_same_result_gives_the_same_bytes(result: Path) -> None:
    """The zip contains no time."""
    digests = set()
    for _ in range(2):
        with zipped(result) as archive:
            assert {member.date_time for member in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        digests.add(hashlib.sha256((result.parent / "bundle.zip").read_bytes()).hexdigest())

    assert len(digests) == 1


def test_a_missing_file_is_left_out_with_its_sidecars(result: Path) -> None:
    """Without a mask there is no table of labels."""
    (result / "mask.nii.gz").unlink()

    with zipped(result) as archive:
        assert not any("_dseg" in name for name in archive.namelist())
        assert f"{STEM}_desc-confidence_probseg.json" in archive.namelist()


def test_a_modality_that_bids_lacks_has_a_folder_that_is_ignored(result: Path) -> None:
    """BIDS has no data type for CT."""
    frame = json.loads((result / FRAME).read_bytes())
    frame["config"]["modality"] = "CT"
    (result / FRAME).write_text(json.dumps(frame))

    with zipped(result) as archive:
        assert "sub-7f/ct/sub-7f_space-orig_seg-hippocampusmr_dseg.nii.gz" in archive.namelist()
        assert "**/ct" in archive.read(".bidsignore").decode().splitlines()
