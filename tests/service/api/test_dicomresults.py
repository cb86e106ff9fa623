import hashlib
import io
import time
import zipfile
from pathlib import Path
from typing import Any

import httpx
import nibabel as nib
import numpy as np
import pydicom
import pytest

from tests.dicom_checks import faults_of, labels_by_place
from tests.dicom_series import CANARY_NAME, series_of_array, zip_of_series

ROUTE = "/v1/segmentations"
DICOM = {"Accept": "application/dicom"}


@pytest.fixture(name="job", scope="module")
def job_(http: httpx.Client, oblique: np.ndarray) -> dict[str, Any]:
    """Return a finished job over an oblique series of 12 x 14 x 10 voxels of 1 mm."""
    affine = oblique / np.linalg.norm(oblique, axis=0)
    affine[:, 3] = [-9, -20, 30, 1]
    array = np.random.default_rng(3).normal(100, 10, (12, 14, 10)).astype(np.float32)
    return finished(http, zip_of_series(series_of_array(array, affine)))


@pytest.fixture(name="other", scope="module")
def other_(http: httpx.Client, nifti: Any) -> dict[str, Any]:  # noqa: ANN401 - the fixture's function
    """Return a finished job over a scan that was not a series."""
    array = np.random.default_rng(3).normal(100, 10, (12, 14, 10)).astype(np.float32)
    return finished(http, nifti(array, np.eye(4)))


def finished(http: httpx.Client, scan: bytes) -> dict[str, Any]:
    """Return the job of a scan once it has succeeded."""
    job: dict[str, Any] = http.post(ROUTE, content=scan).json()
    while job["state"] in ("queued", "running"):
        time.sleep(0.1)
        job = http.get(job["links"]["self"]).json()
    assert job["state"] == "succeeded", job["problem"]
    return job


def read(answer: httpx.Response) -> pydicom.Dataset:
    """Return the DICOM object of an answer."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/dicom"
    return pydicom.dcmread(io.BytesIO(answer.content))


@pytest.mark.parametrize(("route", "modality"), [("mask", "SEG"), ("summary", "SR"), ("confidence", "OT")])
def test_accept_asks_for_dicom(http: httpx.Client, job: dict[str, Any], route: str, modality: str) -> None:
    """The header or ?format= selects DICOM; the bytes are reproducible and have an ETag."""
    first = http.get(job["links"][route], headers=DICOM)
    made = read(first)
    again = http.get(job["links"][route], params={"format": "dcm"})

    assert (made.Modality, made.PatientName) == (modality, CANARY_NAME)
    assert again.content == first.content
    assert (first.headers["vary"], first.headers["etag"]) == ("Accept", again.headers["etag"])
    known = http.get(job["links"][route], headers=DICOM | {"If-None-Match": first.headers["etag"]})
    assert known.status_code == 304


def test_the_mask_in_dicom_is_the_mask_in_nifti(http: httpx.Client, job: dict[str, Any], tmp_path: Path) -> None:
    """Both masks of the same job agree voxel by voxel in patient coordinates."""
    (tmp_path / "mask.nii.gz").write_bytes(http.get(job["links"]["mask"]).content)
    (tmp_path / "seg.dcm").write_bytes(http.get(job["links"]["mask"], headers=DICOM).content)
    mask = nib.Nifti1Image.from_filename(tmp_path / "mask.nii.gz")

    labels = labels_by_place(pydicom.dcmread(tmp_path / "seg.dcm"), mask.affine, mask.shape)
    np.testing.assert_array_equal(labels, np.asarray(mask.dataobj))
    assert faults_of(tmp_path / "seg.dcm") == []


def test_nothing_but_dicom_is_given_unless_it_is_asked_for(http: httpx.Client, job: dict[str, Any]) -> None:
    """The default formats of a series are NIfTI and JSON, which name nobody."""
    assert http.get(job["links"]["mask"]).content.startswith(b"\x1f\x8b")
    assert http.get(job["links"]["summary"]).json()["structures"]
    assert b"CANARY" not in http.get(job["links"]["summary"]).content


def test_dicom_zip_holds_what_is_asked_for(http: httpx.Client, job: dict[str, Any]) -> None:
    """The zip holds segmentation, report and picture by default, others by name."""
    link = f"{ROUTE}/{job['id']}/dicom.zip"
    for objects, names in (([], ["seg", "sr", "sc"]), (["bands", "pdf", "bands"], ["bands", "pdf"])):
        answer = http.get(link, params={"objects": objects})
        assert answer.status_code == 200, answer.text
        with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
            assert archive.namelist() == [f"{name}.dcm" for name in names]
            for name in archive.namelist():
                assert pydicom.dcmread(io.BytesIO(archive.read(name))).PatientName == CANARY_NAME
    again = http.get(link, params={"objects": ["bands", "pdf"]})
    assert hashlib.sha256(again.content).digest() == hashlib.sha256(answer.content).digest()


def test_an_unknown_object_is_refused(http: httpx.Client, job: dict[str, Any]) -> None:
    """The answer lists the known objects."""
    answer = http.get(f"{ROUTE}/{job['id']}/dicom.zip", params={"objects": "rtstruct"})
    assert answer.status_code == 422


def test_the_bundle_of_a_series_holds_dicom(http: httpx.Client, job: dict[str, Any], other: dict[str, Any]) -> None:
    """The bundle of a series also holds DICOM objects, which .bidsignore lists; that of a NIfTI scan holds none."""
    for finished_job, expected in ((job, ["dicom/seg.dcm", "dicom/sr.dcm", "dicom/sc.dcm"]), (other, [])):
        with zipfile.ZipFile(io.BytesIO(http.get(finished_job["links"]["bundle"]).content)) as archive:
            assert [name for name in archive.namelist() if name.endswith(".dcm")] == expected
            assert "dicom/" in archive.read(".bidsignore").decode().splitlines()


def test_a_scan_that_was_no_series_has_no_dicom(http: httpx.Client, other: dict[str, Any]) -> None:
    """406 if Accept only allows DICOM, 409 if the path or ?format= requires it; the answer says why."""
    answer = http.get(other["links"]["mask"], headers=DICOM)
    assert (answer.status_code, answer.json()["type"]) == (406, "/problems/not-acceptable")
    assert answer.json()["detail"].endswith("application/dicom is offered where the scan was a DICOM series.")

    for path in ("mask?format=dcm", "summary?format=dcm", "confidence?format=dcm", "dicom.zip"):
        for method in ("GET", "HEAD"):
            answer = http.request(method, f"{ROUTE}/{other['id']}/{path}")
            assert answer.status_code == 409
        assert http.get(f"{ROUTE}/{other['id']}/{path}").json()["type"] == "/problems/no-source-series"

    either = http.get(other["links"]["mask"], headers={"Accept": "application/dicom, application/gzip;q=0.5"})
    assert either.content.startswith(b"\x1f\x8b")


def test_the_log_names_nobody(http: httpx.Client, job: dict[str, Any], server: tuple[str, Path, Path]) -> None:
    """The canary is neither in the log nor in the metrics."""
    http.get(f"{ROUTE}/{job['id']}/dicom.zip")
    _, log, _ = server

    assert log.stat().st_size > 0
    assert b"CANARY" not in log.read_bytes()
    assert b"CANARY" not in http.get("/metrics").content
