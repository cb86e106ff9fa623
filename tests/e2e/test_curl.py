"""The main job as a stranger does it: a server from the command line, curl, and labels that it never saw."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from model_training.data import Case
from model_training.layouts.msd import read_msd

CLASSES = 3

pytestmark = pytest.mark.skipif(not shutil.which("curl") and not os.environ.get("CI"), reason="curl is not installed")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield the address of a running `calibrant serve`."""
    environment = os.environ | {"CALIBRANT_STATE_DIR": str(tmp_path_factory.mktemp("state"))}
    command = [sys.executable, "-m", "service", "serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        yield next(line.split()[5] for line in process.stdout if " is ready at " in line)
        process.terminate()


def curl(*arguments: str) -> bytes:
    """Return what curl prints."""
    return subprocess.run(["curl", "--silent", "--show-error", *arguments], check=True, capture_output=True).stdout


def post(url: str, scan: Path) -> dict[str, object]:
    """Return the job of a scan after waiting for it."""
    answer = curl("-H", "Prefer: wait=60", "--data-binary", f"@{scan}", f"{url}/v1/segmentations")
    job: dict[str, object] = json.loads(answer)
    return job


def fetch(url: str, job: dict[str, object], result: str, folder: Path) -> np.ndarray:
    """Return the voxels of a result as nibabel reads them."""
    path = folder / f"{result}.nii.gz"
    curl("-o", str(path), f"{url}/v1/segmentations/{job['id']}/{result}")
    return nib.Nifti1Image.from_filename(path).get_fdata()


def dsc(mask: np.ndarray, case: Case) -> float:
    """Return the mean DSC of the two structures, by its definition."""
    labels = nib.Nifti1Image.from_filename(case.label).get_fdata()
    pairs = [(mask == c, labels == c) for c in (1, 2)]
    return float(np.mean([2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in pairs]))


def test_the_test_cases_posted_by_curl(url: str, hippocampus: Path, tmp_path: Path) -> None:
    """All 47 test cases: mean DSC at least 0.86, confidence in [1/C, 1], the card's statement with each."""
    model = json.loads(curl(f"{url}/v1/models/hippocampus-mr"))
    scores = []
    for case in read_msd(hippocampus, str)["test"]:
        job = post(url, case.images[0])
        assert job["state"] == "succeeded"
        confidence = fetch(url, job, "confidence", tmp_path)
        assert confidence.min() >= 1 / CLASSES
        assert confidence.max() <= 1
        summary = json.loads(curl(f"{url}/v1/segmentations/{job['id']}/summary"))
        assert summary["statement"] == model["statement"]
        scores.append(dsc(fetch(url, job, "mask", tmp_path), case))
    print(f"{len(scores)} cases, mean DSC {np.mean(scores):.4f}")
    assert len(scores) == 47
    assert np.mean(scores) >= 0.86


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        ("truncated", "cut short"),
        ("text", "not nifti"),
        ("2-D", "an image of 34 x 52"),
        ("4-D", "a 4-d image of 34 x 52 x 35 x 2"),
    ],
)
def test_files_that_cannot_be_used(url: str, hippocampus: Path, tmp_path: Path, kind: str, found: str) -> None:
    """Each gets a 4xx problem document that says what was found and what to do; the service keeps serving."""
    scan = hippocampus / "imagesTr" / "hippocampus_003.nii.gz"
    path, array = tmp_path / "scan.nii.gz", nib.Nifti1Image.from_filename(scan).get_fdata(dtype=np.float32)
    affine = np.eye(4)
    if kind == "truncated":
        path.write_bytes(scan.read_bytes()[:-1000])
    elif kind == "text":
        path.write_text("This is a letter, not a scan.")
    elif kind == "2-D":
        nib.save(nib.Nifti1Image(array[:, :, 0], affine), path)
    else:
        nib.save(nib.Nifti1Image(np.stack([array, array], axis=-1), affine), path)

    answer = curl("-w", "\n%{http_code} %{content_type}", "--data-binary", f"@{path}", f"{url}/v1/segmentations")

    body, status = answer.decode().rsplit("\n", 1)
    assert status == "422 application/problem+json"
    problem = json.loads(body)
    assert problem["type"].startswith("/problems/")
    assert found in problem["detail"].lower()
    assert problem["detail"].endswith(".")
    assert post(url, scan)["state"] == "succeeded"
