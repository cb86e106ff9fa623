import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from service.api.gate import admission_of, stated_by
from service.client.http import Client
from service.errors import ServerProblem
from tests.dicom_series import Identity, series_of_array, zip_of_series

ROUTE = "/v1/segmentations"
REFUSED = "/problems/scan-not-accepted"


@pytest.fixture(name="ct", scope="module")
def ct_() -> bytes:
    """Return the zip of a series of 12 x 14 x 10 voxels that says that it is a CT."""
    array = np.random.default_rng(8).normal(100, 10, (12, 14, 10)).astype(np.float32)
    return zip_of_series(series_of_array(array, np.diag([-1.0, -1.0, 1.0, 1.0]), Identity(seed="gate", modality="CT")))


def summary_of(http: httpx.Client, job: dict[str, Any]) -> dict[str, Any]:
    """Return the summary of a job once it has succeeded."""
    while job["state"] in ("queued", "running"):
        time.sleep(0.1)
        job = http.get(job["links"]["self"]).json()
    assert job["state"] == "succeeded", job["problem"]
    summary: dict[str, Any] = http.get(job["links"]["summary"]).json()
    return summary


def test_another_modality_is_refused_before_there_is_a_job(http: httpx.Client, ct: bytes) -> None:
    """422 with what was found, what is accepted and how to go on; nothing is kept of the scan."""
    before = {job["id"] for job in http.get(ROUTE).json()["jobs"]}
    answer = http.post(ROUTE, content=ct)

    assert (answer.status_code, answer.json()["type"]) == (422, REFUSED)
    assert "Modality is CT; accepted: MR" in answer.json()["detail"]
    assert "accept=anyway" in answer.json()["detail"]
    assert {job["id"] for job in http.get(ROUTE).json()["jobs"]} == before


def test_a_stored_scan_is_compared_too(http: httpx.Client, ct: bytes) -> None:
    """The scan itself can be stored; a job of it is refused."""
    scan = http.post("/v1/scans", content=ct).json()["id"]
    try:
        answer = http.post(ROUTE, params={"scan": scan})
        assert (answer.status_code, answer.json()["type"]) == (422, REFUSED)
    finally:
        http.delete(f"/v1/scans/{scan}")


def test_whoever_insists_gets_a_withdrawn_answer(http: httpx.Client, ct: bytes) -> None:
    """With accept=anyway the reason is in the statement, and every structure is marked."""
    summary = summary_of(http, http.post(ROUTE, content=ct, params={"accept": "anyway"}).json())

    assert summary["statement"]["status"] == "withdrawn"
    assert any("Modality is CT" in reason for reason in summary["statement"]["reasons"])
    assert summary["statement"]["figures"] is None
    assert all(structure["withdrawn"] for structure in summary["structures"])


def test_what_a_scan_does_not_say_is_listed(http: httpx.Client, nifti: Callable[..., bytes]) -> None:
    """NIfTI says nothing: its modality was not compared, and that alone refuses nothing."""
    array = np.random.default_rng(9).normal(100, 10, (12, 14, 10)).astype(np.float32)
    summary = summary_of(http, http.post(ROUTE, content=nifti(array, np.eye(4))).json())

    assert "Modality" in summary["statement"]["not_compared"]


@pytest.mark.parametrize("by", ["form", "parameter", "client"])
def test_another_contrast_is_refused_by_the_name_of_the_file(
    http: httpx.Client, nifti: Callable[..., bytes], tmp_path: Path, by: str
) -> None:
    """NIfTI says nothing itself; its BIDS name does, in a form, in a parameter, and through the client."""
    content = nifti(np.random.default_rng(9).normal(100, 10, (12, 14, 10)).astype(np.float32), np.eye(4))
    path = tmp_path / "sub-CNRY_FLAIR.nii"
    path.write_bytes(content)
    if by == "client":
        with Client(str(http.base_url)) as client, pytest.raises(ServerProblem) as refused:
            client.segment(path)
        problem_type, detail = refused.value.problem_type, refused.value.detail
    else:
        sent: dict[str, Any] = {
            "form": {"files": {"file": (path.name, content)}},
            "parameter": {"content": content, "params": {"suffix": "FLAIR"}},
        }
        answer = http.post(ROUTE, **sent[by])
        assert answer.status_code == 422
        problem_type, detail = answer.json()["type"], answer.json()["detail"]

    assert problem_type == REFUSED
    assert detail.startswith("suffix is FLAIR; accepted: T1W. ")


def test_what_was_refused_is_in_no_log(http: httpx.Client, ct: bytes, server: tuple[str, Path, Path]) -> None:
    """The log has the code of the problem, and no value of the scan."""
    assert http.post(ROUTE, content=ct).status_code == 422

    log = server[1].read_text()
    assert "scan-not-accepted" in log or "422" in log
    assert "Modality" not in log
    assert "accepted: MR" not in log


def test_the_parameters_of_a_name_go_before_the_forms_file_name() -> None:
    """What is asked for explicitly wins; the rest is as the file name says."""
    admission = admission_of("stated", "T1w", None, {"suffix": "T2w", "ce": "gad"})

    assert dict(admission.name) == {"suffix": "T1w", "ce": "gad"}


def test_only_a_zip_is_read_again(tmp_path: Path, ct: bytes) -> None:
    """Other formats state nothing, so nothing is decoded for them."""
    (tmp_path / "scan").write_bytes(ct)
    (tmp_path / "other").write_bytes(b"no scan at all")

    assert stated_by(tmp_path / "scan")["Modality"] == ("CT",)
    assert stated_by(tmp_path / "other") == {}


def test_the_client_says_what_the_file_name_says(http: httpx.Client, ct: bytes, tmp_path: Path) -> None:
    """The client raises the problem, and goes on with accept."""
    path = tmp_path / "scan.zip"
    path.write_bytes(ct)
    with Client(str(http.base_url)) as client:
        with pytest.raises(ServerProblem) as refused:
            client.segment(path)
        assert refused.value.problem_type == REFUSED
        assert client.segment(path, accept="anyway").summary.statement.status == "withdrawn"
