"""Files that cannot be used, as a stranger sends them by curl. What curl gets for good ones is in test_identical.py."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

pytestmark = pytest.mark.skipif(not shutil.which("curl") and not os.environ.get("CI"), reason="curl is not installed")


def curl(*arguments: str) -> bytes:
    """Return what curl prints."""
    return subprocess.run(["curl", "--silent", "--show-error", *arguments], check=True, capture_output=True).stdout


def post(url: str, scan: Path) -> dict[str, object]:
    """Return the job of a scan after waiting for it."""
    answer = curl("-H", "Prefer: wait=60", "--data-binary", f"@{scan}", f"{url}/v1/segmentations")
    job: dict[str, object] = json.loads(answer)
    return job


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
