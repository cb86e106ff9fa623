import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from service.bundle.reader import load_bundle
from service.errors import ExecutionError, ResultExpired
from service.pipeline.derived import derive_map, derive_measured, reject_without_logits
from service.pipeline.maps import write_map
from service.pipeline.run import run_case

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
    """Byte for byte what this process would have written."""
    write_map(result, tmp_path / "here.nii.gz", "uncertainty", "uint16")

    found = derive_map(result, tmp_path, "uncertainty", "uint16", 120)

    assert found.name == "uncertainty.nii.gz"
    assert found.read_bytes() == (tmp_path / "here.nii.gz").read_bytes()


def test_the_mask_measured_against_itself_is_perfect(result: Path, tmp_path: Path) -> None:
    """Its DSC is 1 for every structure that it holds."""
    mask = np.asarray(nib.load(result / "mask.nii.gz").dataobj)  # type: ignore[attr-defined]  # nibabel's base class

    found = derive_measured(result, tmp_path, mask, "tiny@0", 120)

    assert {each.dsc for each in found.structures} <= {1.0, None}
    assert any(each.dsc == 1 for each in found.structures)
    assert found.model == "tiny@0"


def test_without_logits_nothing_is_computed(result: Path, tmp_path: Path) -> None:
    """Once the retention policy has erased them, or where they were not asked for, the answer is 410."""
    (result / "logits.npy.gz").unlink()

    with pytest.raises(ResultExpired, match=r"^The logits that this is computed from are not kept"):
        derive_map(result, tmp_path, "probabilities", "float32", 120)
    with pytest.raises(ResultExpired):
        reject_without_logits(result)
    assert ResultExpired.status == 410


def test_a_process_that_dies_is_an_error_of_ours(result: Path, tmp_path: Path) -> None:
    """Logits that are no logits end the process, not the service."""
    (result / "logits.npy.gz").write_bytes(b"no logits")

    with pytest.raises(ExecutionError, match=r"^The process that computed from the stored result died\."):
        derive_map(result, tmp_path, "probabilities", "float32", 120)


def test_a_process_that_takes_too_long_is_stopped(result: Path, tmp_path: Path) -> None:
    """Its time is over before torch is loaded."""
    with pytest.raises(ExecutionError, match=r"took longer than 0 s and was stopped"):
        derive_map(result, tmp_path, "probabilities", "float32", 0.01)


def test_the_parent_loads_no_torch() -> None:
    """Whoever asks for a map holds neither torch nor monai."""
    script = "import sys, service.pipeline.derived; print([name for name in ('torch', 'monai') if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
