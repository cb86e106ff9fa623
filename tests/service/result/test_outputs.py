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
    """Encode a picture of a case, as far as a test needs one."""
    return f"mask of {case.mask.size} voxels on a scan of {case.volume.shape}".encode()


@pytest.fixture
def overlay(monkeypatch: pytest.MonkeyPatch) -> ResultFile:
    """Add a picture to the table, kept with the mask."""
    line = ResultFile("overlay.png", ink, "mask", "image/png", "{subject}_overlay.png")
    monkeypatch.setattr(outputs, "OUTPUTS", (*outputs.OUTPUTS, line))
    return line


@pytest.fixture(name="result")
def result_(tmp_path: Path, tiny_bundle: Path, nifti: Nifti, overlay: ResultFile) -> Path:
    """Return the folder of a result that holds the picture, too."""
    scan, folder = tmp_path / "scan.nii", tmp_path / "result"
    scan.write_bytes(nifti(np.random.default_rng(7).normal(100, 10, (9, 10, 6)).astype(np.float32)))
    folder.mkdir()
    case = run_case(scan, load_bundle(tiny_bundle, torch.device("cpu")), folder, lambda _stage, _done: None)
    assert overlay.name in case.files
    return folder


def test_one_line_of_the_table_makes_a_file(result: Path) -> None:
    """A file that is added to the table is encoded from the finished case and named in `result.json`."""
    assert (result / "overlay.png").read_bytes() == b"mask of 540 voxels on a scan of (9, 10, 6)"


def test_one_line_of_the_table_puts_a_file_into_the_zip(result: Path, tmp_path: Path) -> None:
    """A file that BIDS does not know stands beside the summary, and BIDS is told to ignore it."""
    write_zip(result, "7f", tmp_path / "bundle.zip")

    with zipfile.ZipFile(tmp_path / "bundle.zip") as archive:
        assert archive.read("sub-7f/sub-7f_overlay.png") == (result / "overlay.png").read_bytes()
        assert "*_overlay.png" in archive.read(".bidsignore").decode().splitlines()


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
    """A file without an output is always written, one without content never."""
    silent = tuple(
        ResultFile(file.name, lambda _case: b"", file.output) for file in outputs.OUTPUTS if file.name != files.SOURCE
    )
    monkeypatch.setattr(outputs, "OUTPUTS", (*silent, ResultFile(files.SOURCE, lambda _case: None)))

    encoded = outputs.encode_files(None, kept)  # type: ignore[arg-type]  # these encoders look at no case

    assert set(encoded) == names


def test_every_format_of_the_mask_has_its_line() -> None:
    """The stored file, its conversions and the DICOM object are the formats that the API names."""
    file = result_file(files.MASK)

    assert {file.name.partition(".")[2], *file.conversions, "dcm"} == set(get_args(MaskFormat))
    assert file.dicom_object is not None


def test_headers_of_a_series_never_leave_the_service() -> None:
    """They name the patient: no route serves them and no zip holds them."""
    file = result_file(files.SOURCE)

    assert (file.media_type, file.archive_name) == (None, None)


def test_a_file_that_no_line_describes_is_a_mistake() -> None:
    """The table is asked for its own names only."""
    with pytest.raises(KeyError):
        result_file("overlay.jpeg")
