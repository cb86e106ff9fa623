import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from service.bundle.reader import load_bundle
from service.pipeline.run import run_case
from service.result import files, outputs
from service.result.bids import write_zip
from service.result.outputs import FinishedCase, MaskFormat, ResultFile, result_file
from service.schemas import Output

Nifti = Callable[..., bytes]


def ink(case: FinishedCase) -> bytes:
    """Return a placeholder for a picture of a case."""
    return f"mask of {case.mask.size} voxels on a scan of {case.volume.shape}".encode()


@pytest.fixture
def picture(monkeypatch: pytest.MonkeyPatch) -> ResultFile:
    """Add a picture to the table, kept with the mask, and return its entry."""
    entry = ResultFile("ink.png", ink, "mask", "image/png", "{subject}_ink.png")
    monkeypatch.setattr(outputs, "OUTPUTS", (*outputs.OUTPUTS, entry))
    return entry


@pytest.fixture(name="result")
def result_(tmp_path: Path, tiny_bundle: Path, nifti: Nifti, picture: ResultFile) -> Path:
    """Return the folder of a result with the picture."""
    scan, folder = tmp_path / "scan.nii", tmp_path / "result"
    scan.write_bytes(nifti(np.random.default_rng(7).normal(100, 10, (9, 10, 6)).astype(np.float32)))
    folder.mkdir()
    case = run_case(scan, load_bundle(tiny_bundle, torch.device("cpu")), folder, lambda _stage, _done: None)
    assert picture.name in case.files
    return folder


def test_one_entry_of_the_table_makes_a_file(result: Path) -> None:
    """A file in the table is encoded from the finished case and listed in `result.json`."""
    assert (result / "ink.png").read_bytes() == b"mask of 540 voxels on a scan of (9, 10, 6)"


def test_one_entry_of_the_table_adds_a_file_to_the_zip(result: Path, tmp_path: Path) -> None:
    """A file that BIDS does not know is placed beside the summary and listed in `.bidsignore`."""
    write_zip(result, "7f", tmp_path / "bundle.zip")

    with zipfile.ZipFile(tmp_path / "bundle.zip") as archive:
        assert archive.read("sub-7f/sub-7f_ink.png") == (result / "ink.png").read_bytes()
        assert "*_ink.png" in archive.read(".bidsignore").decode().splitlines()


@pytest.mark.parametrize(
    ("kept", "names"),
    [
        ([], {"frame.json"}),
        (["summary", "mask"], {"frame.json", "mask.nii.gz", "summary.json"}),
        (["probabilities"], {"frame.json"}),
        (get_args(Output), {"frame.json", "mask.nii.gz", "summary.json", "confidence.nii.gz"}),
    ],
)
def test_only_files_of_kept_outputs_are_encoded(
    kept: list[Output], names: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file without an output is always written; one without content is never written."""
    silent = tuple(
        ResultFile(file.name, lambda _case: b"", file.output) for file in outputs.OUTPUTS if file.name != files.SOURCE
    )
    monkeypatch.setattr(outputs, "OUTPUTS", (*silent, ResultFile(files.SOURCE, lambda _case: None)))

    encoded = outputs.encode_files(None, kept)  # type: ignore[arg-type]  # these encoders ignore the case

    assert set(encoded) == names


def test_every_format_of_the_mask_is_offered() -> None:
    """The stored file, its conversions and the DICOM object are the formats of the API."""
    file = result_file(files.MASK)

    assert {file.name.partition(".")[2], *file.conversions, "dcm"} == set(get_args(MaskFormat))
    assert file.dicom_object is not None


def test_headers_of_a_series_never_leave_the_service() -> None:
    """They name the patient: no route serves them and no zip holds them."""
    file = result_file(files.SOURCE)

    assert (file.media_type, file.archive_name) == (None, None)


def test_an_unknown_file_is_an_error() -> None:
    """The table has only its own names."""
    with pytest.raises(KeyError):
        result_file("ink.jpeg")
