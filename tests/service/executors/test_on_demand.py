import gzip
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch

from service.bundle.reader import load_bundle
from service.derived.maps import write_map
from service.errors import ExecutionError, NoSourceSeries, ResultExpired
from service.executors.on_demand import derive_dicom, derive_map, derive_measured
from service.pipeline.run import run_case
from service.result.files import holds_series, offers_dicom, reject_without_logits
from service.schemas import Superseded
from tests.dicom_series import CANARY_NAME, series_of_array, zip_of_series

Nifti = Callable[..., bytes]


@pytest.fixture(name="result")
def result_(tiny_bundle: Path, nifti: Nifti, tmp_path: Path) -> Path:
    """Return the folder of a result."""
    (tmp_path / "scan.nii").write_bytes(nifti())
    (tmp_path / "result").mkdir()
    bundle = load_bundle(tiny_bundle, torch.device("cpu"))
    run_case(tmp_path / "scan.nii", bundle, tmp_path / "result", lambda _stage, _done: None)
    return tmp_path / "result"


def test_a_map_of_another_process_is_the_same_map(result: Path, tmp_path: Path) -> None:
    """The file is byte for byte what this process would write."""
    write_map(result, tmp_path / "here.nii.gz", "uncertainty", "uint16")

    path = derive_map(result, tmp_path, "uncertainty", "uint16", 120)

    assert path.name == "uncertainty.nii.gz"
    assert path.read_bytes() == (tmp_path / "here.nii.gz").read_bytes()


def test_the_mask_measured_against_itself_is_perfect(result: Path, tmp_path: Path) -> None:
    """The DSC is 1 for every structure in the mask."""
    mask = np.asarray(nib.load(result / "mask.nii.gz").dataobj)  # type: ignore[attr-defined]  # nibabel's base class

    measured = derive_measured(result, tmp_path, mask, "tiny@0", 120)

    assert {structure.dsc for structure in measured.structures} <= {1.0, None}
    assert any(structure.dsc == 1 for structure in measured.structures)
    assert measured.model == "tiny@0"


def test_without_logits_nothing_is_computed(result: Path, tmp_path: Path) -> None:
    """Without logits the answer is ResultExpired."""
    (result / "logits.npy.gz").unlink()

    with pytest.raises(ResultExpired, match=r"^The logits that this is computed from are not kept"):
        derive_map(result, tmp_path, "probabilities", "float32", 120)
    with pytest.raises(ResultExpired):
        reject_without_logits(result)
    assert ResultExpired.status == 410


def test_a_process_that_dies_is_an_error_of_ours(result: Path, tmp_path: Path) -> None:
    """Damaged logits end the process with an ExecutionError, not the service."""
    (result / "logits.npy.gz").write_bytes(b"no logits")

    with pytest.raises(ExecutionError, match=r"^The process that computed from the stored result died\."):
        derive_map(result, tmp_path, "probabilities", "float32", 120)


def test_a_process_that_takes_too_long_is_stopped(result: Path, tmp_path: Path) -> None:
    """The time limit ends the process even before torch is loaded."""
    with pytest.raises(ExecutionError, match=r"took longer than 0 s and was stopped"):
        derive_map(result, tmp_path, "probabilities", "float32", 0.01)


@pytest.fixture(name="of_series")
def of_series_(tiny_bundle: Path, tmp_path: Path) -> Path:
    """Return the folder of a result of a DICOM series."""
    array = np.random.default_rng(1).normal(100, 9, (12, 10, 8)).astype(np.float32)
    (tmp_path / "scan.zip").write_bytes(zip_of_series(series_of_array(array, np.diag([-1.0, -1, 1, 1]))))
    (tmp_path / "of_series").mkdir()
    bundle = load_bundle(tiny_bundle, torch.device("cpu"))
    run_case(tmp_path / "scan.zip", bundle, tmp_path / "of_series", lambda _stage, _done: None)
    return tmp_path / "of_series"


def test_dicom_objects_are_made_without_the_scan(of_series: Path, tmp_path: Path) -> None:
    """There is one file per object in the given order, without duplicates, and reproducible."""
    (tmp_path / "scan.zip").unlink()
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    paths = derive_dicom(of_series, tmp_path / "one", ["sr", "pm", "sr"], 120)
    again = derive_dicom(of_series, tmp_path / "two", ["pm", "sr"], 120)

    assert [path.name for path in paths] == ["sr.dcm", "pm.dcm"]
    assert {path.name: path.read_bytes() for path in paths} == {path.name: path.read_bytes() for path in again}
    assert [pydicom.dcmread(path).PatientName for path in paths] == [CANARY_NAME] * 2


def test_a_newer_result_says_which_it_replaces(of_series: Path, tmp_path: Path) -> None:
    """The superseded report is passed on to the process."""
    older = Superseded(series_instance_uid="1.2.9", sop_instance_uid="1.2.10")
    (path,) = derive_dicom(of_series, tmp_path, ["sr"], 120, older)

    assert "1.2.10" in str(pydicom.dcmread(path).PredecessorDocumentsSequence)


def test_a_scan_that_was_no_series_has_no_dicom(result: Path, tmp_path: Path) -> None:
    """Without a DICOM series there is no study to belong to; the error says what to send."""
    assert (holds_series(result), offers_dicom(result)) == (False, False)
    with pytest.raises(NoSourceSeries, match=r"^The scan was not a DICOM series"):
        derive_dicom(result, tmp_path, ["seg"], 120)


def test_what_was_not_kept_cannot_be_shown(of_series: Path, tmp_path: Path) -> None:
    """Without logits there is no parametric map, and without the summary no object."""
    assert (holds_series(of_series), offers_dicom(of_series)) == (True, True)
    (of_series / "logits.npy.gz").unlink()
    with pytest.raises(ResultExpired, match=r"^The logits"):
        derive_dicom(of_series, tmp_path, ["seg", "pm"], 120)

    (of_series / "summary.json").unlink()
    assert not offers_dicom(of_series)
    with pytest.raises(ResultExpired, match=r"^DICOM results are made of mask, confidence and summary"):
        derive_dicom(of_series, tmp_path, ["seg"], 120)


def test_a_process_that_dies_over_a_patient_says_nothing(
    of_series: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Neither the error nor the output for a damaged header repeats the header."""
    source = gzip.decompress((of_series / "source.json.gz").read_bytes())
    (of_series / "source.json.gz").write_bytes(gzip.compress(source.replace(b'"rows"', b'"CANARY"')))

    with pytest.raises(ExecutionError) as error:
        derive_dicom(of_series, tmp_path, ["seg"], 120)
    assert "CANARY" not in error.value.detail + "".join(capfd.readouterr())


def test_the_parent_loads_no_torch() -> None:
    """Deriving a map loads neither torch nor MONAI in the calling process."""
    script = (
        "import sys, service.executors.on_demand; print([name for name in ('torch', 'monai') if name in sys.modules])"
    )
    child = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert child.stdout.strip() == "[]"
