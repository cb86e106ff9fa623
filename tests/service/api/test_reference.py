import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import nibabel as nib
import numpy as np
import pytest
import SimpleITK

Nifti = Callable[..., bytes]

ROUTE = "/v1/segmentations"


@pytest.fixture(name="job", scope="module")
def job_(http: httpx.Client, nifti: Nifti) -> dict[str, Any]:
    """Return a finished job over a scan of 12 x 14 x 10 voxels."""
    array = np.random.default_rng(4).normal(100, 10, (12, 14, 10)).astype(np.float32)
    job: dict[str, Any] = http.post(ROUTE, content=nifti(array), headers={"Prefer": "wait=50"}).json()
    assert job["state"] == "succeeded"
    return job


@pytest.fixture(name="mask", scope="module")
def mask_(http: httpx.Client, job: dict[str, Any]) -> bytes:
    """Return the job's mask."""
    return http.get(job["links"]["mask"]).content


def test_the_mask_is_measured_against_itself(http: httpx.Client, job: dict[str, Any], mask: bytes) -> None:
    """Every structure in the mask has a DSC of 1; the answer says that it was measured, and for which model."""
    answer = http.post(job["links"]["reference"], content=mask)

    assert answer.status_code == 200
    measured = answer.json()
    assert (measured["basis"], measured["model"]) == ("measured", job["model"])
    voxels = np.asarray(nib.Nifti1Image.from_bytes(gzip.decompress(mask)).dataobj)
    for label, structure in enumerate(measured["structures"], start=1):
        assert structure["reference_voxels"] == structure["predicted_voxels"] == (voxels == label).sum()
        assert structure["dsc"] == (1 if structure["reference_voxels"] else None)
    assert sum(measured["reliability"]["structures"][0]["count"]) == voxels.size
    assert measured["reliability"]["n_cases"] == 1
    assert "measured" in measured["reliability"]["source"]


def test_a_form_and_other_formats_are_read(
    http: httpx.Client, job: dict[str, Any], mask: bytes, tmp_path: Path
) -> None:
    """A reference may be sent in a form, and in any format of scans."""
    (tmp_path / "mask.nii.gz").write_bytes(mask)
    SimpleITK.WriteImage(SimpleITK.ReadImage(tmp_path / "mask.nii.gz"), tmp_path / "mask.nrrd")
    expected = http.post(job["links"]["reference"], content=mask).json()

    assert http.post(job["links"]["reference"], files={"file": mask}).json() == expected
    answer = http.post(job["links"]["reference"], content=(tmp_path / "mask.nrrd").read_bytes())
    assert answer.json() == expected


def test_nothing_of_the_reference_is_kept(
    http: httpx.Client, job: dict[str, Any], mask: bytes, server_state: Path
) -> None:
    """No scan and no scratch file is left, whether the reference was measured or refused."""
    before = {path for path in server_state.rglob("*") if not path.name.startswith("jobs.sqlite")}

    http.post(job["links"]["reference"], content=mask)
    http.post(job["links"]["reference"], content=mask[:-20])

    assert {path for path in server_state.rglob("*") if not path.name.startswith("jobs.sqlite")} == before


def test_another_grid_is_422(http: httpx.Client, job: dict[str, Any], nifti: Nifti) -> None:
    """The problem document gives the shapes, or how far the grids are apart."""
    answer = http.post(job["links"]["reference"], content=nifti(np.zeros((12, 10, 14), np.uint8)))
    assert (answer.status_code, answer.json()["type"]) == (422, "/problems/geometry-mismatch")
    assert "has 12 x 10 x 14 voxels; the scan has 12 x 14 x 10" in answer.json()["detail"]

    answer = http.post(job["links"]["reference"], content=nifti(np.zeros((12, 14, 10), np.uint8), np.eye(4)))
    assert (answer.status_code, answer.json()["type"]) == (422, "/problems/geometry-mismatch")
    assert answer.json()["detail"].startswith("The affines of reference and scan differ: ")


def test_unknown_labels_are_422(http: httpx.Client, job: dict[str, Any], nifti: Nifti) -> None:
    """The problem document lists the unknown values, which are only numbers."""
    answer = http.post(job["links"]["reference"], content=nifti(np.full((12, 14, 10), 17, np.int16)))

    assert (answer.status_code, answer.json()["type"]) == (422, "/problems/unknown-labels")
    assert answer.json()["detail"].startswith("The reference holds 17; the model's labels are 0, 1, 2.")


@pytest.mark.parametrize(
    ("content", "code"), [(b"", "empty-file"), (b"no image at all", "unrecognised-format")], ids=["empty", "text"]
)
def test_what_is_no_image_is_the_files_fault(
    http: httpx.Client, job: dict[str, Any], content: bytes, code: str
) -> None:
    """A file that is not an image is refused as for a scan."""
    answer = http.post(job["links"]["reference"], content=content)

    assert (answer.status_code, answer.json()["type"]) == (422, f"/problems/{code}")


def test_a_reference_of_nothing_is_404(http: httpx.Client, mask: bytes) -> None:
    """An unknown job is a 404."""
    answer = http.post(f"{ROUTE}/{'0' * 32}/reference", content=mask)

    assert (answer.status_code, answer.json()["type"]) == (404, "/problems/job-not-found")


def test_measured_images_are_pooled_beside_the_card(http: httpx.Client, job: dict[str, Any], mask: bytes) -> None:
    """Two measured documents give a site's figures; another model's are refused; nothing has to be kept for that."""
    measured = http.post(job["links"]["reference"], content=mask).json()
    route = f"/v1/models/{job['model'].partition('@')[0]}/site-figures"
    cases = [{"person": person, "measured": measured} for person in ("A", "B")]

    answer = http.post(route, json={"cases": cases})

    assert answer.status_code == 200, answer.text
    figures = answer.json()
    assert (figures["n_cases"], figures["n_persons"], figures["model"]) == (2, 2, job["model"])
    assert figures["statements"] == {measured["statement"]: 2}
    assert figures["figures"]["brier"]["site"]["value"] == pytest.approx(measured["brier"])
    assert figures["figures"]["brier"]["p"] > 0
    cases[1]["measured"] = measured | {"model": "other@0"}
    answer = http.post(route, json={"cases": cases})
    assert (answer.status_code, answer.json()["type"]) == (422, "/problems/measured-differ")


def test_a_body_that_is_no_json_is_refused(http: httpx.Client, job: dict[str, Any]) -> None:
    """Bytes that are not UTF-8 give a problem document that says what was expected."""
    route = f"/v1/models/{job['model'].partition('@')[0]}/site-figures"

    answer = http.post(route, content=b"\xff", headers={"Content-Type": "application/json"})

    assert (answer.status_code, answer.json()["type"]) == (422, "/problems/invalid-request")
    assert "JSON in UTF-8" in answer.json()["detail"]
