import hashlib
import uuid
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from pydicom.dataset import Dataset

Nifti = Callable[..., bytes]

ROUTE = "/v1/scans"
PROBLEM = "application/problem+json"


@pytest.fixture(name="scan")
def scan_(nifti: Nifti) -> bytes:
    """Return a scan that was never sent before."""
    return nifti(descrip=uuid.uuid4().hex.encode())


def test_a_scan_is_uploaded_once_and_segmented_often(http: httpx.Client, scan: bytes, server_state: Path) -> None:
    """A scan sent as body or form has one id, its SHA-256, and jobs can be made from the id alone."""
    sha256 = hashlib.sha256(scan).hexdigest()

    answers = [http.post(ROUTE, content=scan), http.post(ROUTE, files={"file": ("Doe^Jane.nii", scan)})]

    for answer in answers:
        assert answer.status_code == 201
        assert answer.headers["location"] == f"{ROUTE}/{sha256}"
        assert answer.json() == {"id": sha256, "bytes": len(scan)}
    assert http.get(f"{ROUTE}/{sha256}").json() == {"id": sha256, "bytes": len(scan)}
    assert (server_state / "scans" / "local" / sha256).read_bytes() == scan
    jobs = [http.post("/v1/segmentations", params={"scan": sha256}) for _ in range(2)]
    assert [job.status_code for job in jobs] == [202, 202]
    assert {job.json()["scan"] for job in jobs} == {sha256}
    assert len({job.json()["id"] for job in jobs}) == 2


def test_a_scan_is_erased(http: httpx.Client, scan: bytes, server_state: Path) -> None:
    """The answer is 204; then the scan is gone, and can be uploaded again."""
    identifier = http.post(ROUTE, content=scan).json()["id"]

    assert http.delete(f"{ROUTE}/{identifier}").status_code == 204

    assert not (server_state / "scans" / "local" / identifier).exists()
    for answer in (
        http.get(f"{ROUTE}/{identifier}"),
        http.delete(f"{ROUTE}/{identifier}"),
        http.post("/v1/segmentations", params={"scan": identifier}),
    ):
        assert (answer.status_code, answer.json()["type"]) == (404, "/problems/scan-not-found")
    assert http.post(ROUTE, content=scan).status_code == 201


def test_a_scan_that_a_job_was_made_from_stays(http: httpx.Client, scan: bytes) -> None:
    """The refusal advises to delete the job, which erases the scan, too."""
    job = http.post("/v1/segmentations", content=scan, headers={"Prefer": "wait=50"}).json()

    refused = http.delete(f"{ROUTE}/{job['scan']}")

    assert (refused.status_code, refused.headers["content-type"]) == (422, PROBLEM)
    assert "Delete that" in refused.json()["detail"]
    assert http.get(f"{ROUTE}/{job['scan']}").status_code == 200
    assert http.delete(job["links"]["self"]).status_code == 204
    assert http.get(f"{ROUTE}/{job['scan']}").status_code == 404


@pytest.mark.parametrize(
    "identifier", ["0" * 64, "0" * 63, "..%2f..%2fjobs.sqlite", "%00", "x" * 5000, "A" * 64, "%F0%9F"]
)
def test_an_unknown_scan_is_404(http: httpx.Client, identifier: str) -> None:
    """Any unknown id is a 404 that does not repeat it."""
    for method in ("GET", "DELETE"):
        answer = http.request(method, f"{ROUTE}/{identifier}")
        assert answer.status_code == 404
        assert answer.headers["content-type"] == PROBLEM
        assert answer.json()["type"] in ("/problems/scan-not-found", "/problems/not-found")
        assert identifier not in answer.text


@pytest.mark.parametrize("identifier", ["0" * 64, "0" * 63, "", "../x", "\x00"])
def test_a_job_of_an_unknown_scan_is_refused(http: httpx.Client, identifier: str) -> None:
    """An unknown scan id is a 404, even if a body is sent with it."""
    answer = http.post("/v1/segmentations", params={"scan": identifier}, content=b"ignored")

    assert (answer.status_code, answer.json()["type"]) == (404, "/problems/scan-not-found")


def test_what_is_no_scan_is_not_kept(http: httpx.Client, server_state: Path) -> None:
    """An upload is checked like the body of a segmentation."""
    before = {*server_state.glob("scans/*/*")}

    answers = [http.post(ROUTE, content=content) for content in (b"", b"no scan", bytes(2_000_001))]

    assert [answer.status_code for answer in answers] == [422, 422, 413]
    assert {*server_state.glob("scans/*/*")} == before
    assert list((server_state / "incoming").iterdir()) == []


def test_one_series_of_several_is_stored(
    http: httpx.Client, slices_of: Callable[..., list[Dataset]], zip_of: Callable[..., bytes]
) -> None:
    """Without a choice each series is named; the chosen one is a scan of its own, from which jobs are made."""
    first, second = slices_of(), slices_of()
    for number, image in enumerate(second):
        image.SeriesInstanceUID, image.SOPInstanceUID = "1.2.55", f"1.2.9.{number}"
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
    both = zip_of(first + second[:4])

    for route in (ROUTE, "/v1/segmentations"):
        refused = http.post(route, content=both)
        assert (refused.status_code, refused.json()["type"]) == (422, "/problems/multiple-series")
        assert "1.2.55 (CT, 4 images)" in refused.json()["detail"]
    scans = [http.post(ROUTE, content=both, params={"series": uid}).json() for uid in ("1.2.5", "1.2.55", "1.2.55")]
    job = http.post("/v1/segmentations", content=both, params={"series": "1.2.55", "accept": "anyway"})
    wrong = http.post(ROUTE, content=both, params={"series": "1.2.56"})
    malformed = http.post(ROUTE, content=both, params={"series": "Doe"})

    assert scans[0]["id"] != scans[1]["id"] == scans[2]["id"]
    assert (job.status_code, job.json()["scan"]) == (202, scans[1]["id"])
    assert (wrong.status_code, wrong.json()["type"]) == (422, "/problems/invalid-request")
    assert malformed.status_code == 422
