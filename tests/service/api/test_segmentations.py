import base64
import datetime as dt
import json
import os
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import nibabel as nib
import numpy as np
import pytest

from service.bundle.description import describe_bundle
from service.bundle.registry import SHIPPED

Nifti = Callable[..., bytes]
Ask = Callable[..., httpx.Response]

ROUTE = "/v1/segmentations"
STAGES = ["decode", "preprocess", "infer", "calibrate", "encode", "store"]
PROBLEM = "application/problem+json"


def send(http: httpx.Client, content: bytes, **headers: str) -> httpx.Response:
    """Send a scan, and wait for its result by default."""
    headers = {"Prefer": "wait=50"} | {name.replace("_", "-"): value for name, value in headers.items()}
    return http.post(ROUTE, content=content, headers=headers)


def done(http: httpx.Client, content: bytes) -> dict[str, Any]:
    """Return the job of a scan that must succeed."""
    answer = send(http, content)
    assert answer.status_code == 200, answer.text
    job: dict[str, Any] = answer.json()
    assert job["state"] == "succeeded", job
    return job


def finished(http: httpx.Client, location: str) -> dict[str, Any]:
    """Poll a job until it has finished."""
    deadline = time.monotonic() + 60
    while (job := http.get(location).json())["state"] in ("queued", "running"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return dict(job)


def image(http: httpx.Client, link: str, folder: Path) -> nib.Nifti1Image:
    """Fetch an image of a result and open it with nibabel."""
    answer = http.get(link)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/gzip"
    path = folder / "image.nii.gz"
    path.write_bytes(answer.content)
    return nib.Nifti1Image.from_filename(path)


@pytest.fixture(name="scan", scope="module")
def scan_(nifti: Nifti) -> bytes:
    """Return a scan of two bright boxes in 36 x 48 x 32 oblique voxels, of a size that the card covers."""
    turned = np.array([[0.8, -0.6, 0, -9], [0.6, 0.8, 0, -20], [0, 0, 1, 30], [0, 0, 0, 1]])
    array = np.random.default_rng(0).normal(100, 10, (36, 48, 32))
    array[12:20, 10:24, 10:20] += 60
    array[14:22, 24:38, 10:20] += 40
    return nifti(array.astype(np.float32), turned)


def test_a_client_that_waits_gets_the_finished_job(http: httpx.Client, scan: bytes) -> None:
    """With Prefer: wait, the answer is 200 with a succeeded job and links to its results."""
    answer = send(http, scan)

    assert answer.status_code == 200
    assert answer.headers["preference-applied"] == "wait=50"
    assert "retry-after" not in answer.headers
    job = answer.json()
    here = f"{ROUTE}/{job['id']}"
    assert answer.headers["location"] == here
    assert job["links"] == {
        "self": here,
        "mask": f"{here}/mask",
        "confidence": f"{here}/confidence",
        "summary": f"{here}/summary",
        "probabilities": f"{here}/probabilities",
        "uncertainty": f"{here}/uncertainty",
        "reference": f"{here}/reference",
        "bundle": f"{here}/bundle.zip",
        "events": None,
        "cancel": None,
    }
    assert (job["state"], job["progress"], job["stage"], job["problem"]) == ("succeeded", 1, None, None)
    assert list(job["seconds"]) == STAGES
    assert all(seconds >= 0 for seconds in job["seconds"].values())
    age = dt.datetime.now(dt.UTC) - dt.datetime.fromisoformat(job["created"])
    assert dt.timedelta() < age < dt.timedelta(minutes=2)


def test_a_client_that_does_not_wait_polls(http: httpx.Client, scan: bytes, tmp_path: Path) -> None:
    """Without Prefer, the answer is 202 with Location and Retry-After."""
    answer = http.post(ROUTE, content=scan)

    assert answer.status_code == 202
    assert answer.headers["retry-after"] == "1"
    assert "preference-applied" not in answer.headers
    assert answer.json()["state"] in ("queued", "running")
    here = answer.headers["location"]
    links = {name: link for name, link in answer.json()["links"].items() if link}
    assert links == {"self": here, "events": f"{here}/events", "cancel": f"{here}/cancel"}
    job = finished(http, answer.headers["location"])
    assert job["state"] == "succeeded"
    assert image(http, job["links"]["mask"], tmp_path).shape == (36, 48, 32)


def test_the_mask_lies_where_the_scan_lies(http: httpx.Client, scan: bytes, tmp_path: Path) -> None:
    """Mask and confidence of an oblique scan have its shape and, to the last bit, its affine."""
    path = tmp_path / "scan.nii"
    path.write_bytes(scan)
    expected = nib.Nifti1Image.from_filename(path)
    links = done(http, scan)["links"]

    for name in ("mask", "confidence"):
        result = image(http, links[name], tmp_path)
        assert result.shape == expected.shape
        assert result.affine.tobytes() == expected.affine.tobytes()
        assert result.header.get_qform().tobytes() == expected.header.get_qform().tobytes()


def test_values_are_labels_and_confidences(http: httpx.Client, scan: bytes, tmp_path: Path) -> None:
    """The mask holds labels of the model, and the confidence lies in [1/C, 1] with C = 3."""
    links = done(http, scan)["links"]
    mask = image(http, links["mask"], tmp_path).get_fdata()
    confidence = image(http, links["confidence"], tmp_path).get_fdata()

    assert set(np.unique(mask)) <= {0, 1, 2}
    assert confidence.min() >= 1 / 3
    assert confidence.max() <= 1
    assert np.ptp(confidence) > 0.1


def test_the_summary_counts_what_the_mask_holds(http: httpx.Client, scan: bytes, tmp_path: Path) -> None:
    """Voxels, volume and mean confidence of each structure follow from mask and confidence (a voxel is 0.001 ml)."""
    links = done(http, scan)["links"]
    mask = image(http, links["mask"], tmp_path).get_fdata()
    confidence = image(http, links["confidence"], tmp_path).get_fdata()

    summary = http.get(links["summary"]).json()

    assert [structure["label"] for structure in summary["structures"]] == [1, 2]
    for structure in summary["structures"]:
        inside = mask == structure["label"]
        assert structure["voxels"] == inside.sum()
        assert structure["volume_ml"] == pytest.approx(inside.sum() / 1000, rel=1e-5)
        if inside.any():
            assert structure["mean_confidence"] == pytest.approx(confidence[inside].mean(), abs=1 / 255)
        else:
            assert structure["mean_confidence"] is None
    assert summary["research_use_only"].startswith("For research use only")
    assert summary["warnings"] == []


def test_the_statement_is_the_cards(http: httpx.Client, real_hippocampus: Path) -> None:
    """A scan like those of the card carries the statement of the model's page, with the figures of its engine."""
    job = done(http, (real_hippocampus / "imagesTr" / "hippocampus_003.nii.gz").read_bytes())
    model = http.get("/v1/models/hippocampus-mr").json()

    summary = http.get(job["links"]["summary"]).json()

    assert summary["model"] == job["model"] == model["identity"]
    said = summary["statement"]
    card = describe_bundle(SHIPPED / "hippocampus-mr").card
    assert said["status"] == "holds"
    measurement = card.measurement(said["engine"], said["precision"])
    assert measurement is not None
    assert said["figures"] == {name: score.model_dump() for name, score in measurement.scores.items()}
    about_the_scan = {"status", "reasons", "p", "n_compared", "features", "not_compared"}
    alike = said.keys() - {"figures", "text", "engine", "precision"} - about_the_scan
    assert {key: said[key] for key in alike} == {key: model["statement"][key] for key in alike}


def test_a_head_without_hippocampi_is_refused(http: httpx.Client, nifti: Nifti) -> None:
    """Noise of the size of a head is searched in vain: 422 with a problem document, no mask."""
    array = np.random.default_rng(1).normal(100, 10, (61, 16, 16)).astype(np.float32)
    job = finished(http, http.post(ROUTE, content=nifti(array, np.diag([3.0, 2, 2, 1]))).json()["links"]["self"])

    assert job["state"] == "failed"
    assert (job["problem"]["status"], job["problem"]["type"]) == (422, "/problems/anatomy-not-found")
    assert job["problem"]["detail"].startswith("No hippocampus found (")
    assert job["links"]["mask"] is None


def test_the_statement_is_withdrawn_for_another_field_of_view(http: httpx.Client, nifti: Nifti) -> None:
    """For a crop more than a quarter longer than the card's, no figure of the card is shown."""
    array = np.random.default_rng(1).normal(100, 10, (16, 16, 16)).astype(np.float32)
    job = done(http, nifti(array, np.diag([3.0, 2, 2, 1])))

    statement = http.get(job["links"]["summary"]).json()["statement"]

    assert statement["status"] == "withdrawn"
    assert statement["text"].startswith("Withdrawn: this scan is unlike the ")
    assert statement["figures"] is None
    assert any(reason.startswith("extent along axis 1 is 48 mm; ") for reason in statement["reasons"])


def test_a_repeated_header_warning_reaches_the_summary(http: httpx.Client, scan: bytes, patch: Nifti) -> None:
    """The summary reports two orientations that differ."""
    job = done(http, patch(scan, qoffset_x=3))

    assert http.get(job["links"]["summary"]).json()["warnings"] == [
        "The file holds two orientations (qform and sform) that differ; the sform was used."
    ]


def test_the_same_scan_gives_the_same_bytes(http: httpx.Client, scan: bytes) -> None:
    """Mask, confidence and summary of two jobs over one scan do not differ."""
    first, second = done(http, scan)["links"], done(http, scan)["links"]

    assert first["self"] != second["self"]
    for name in ("mask", "confidence", "summary"):
        assert http.get(first[name]).content == http.get(second[name]).content


def test_the_identity_of_the_model_may_be_asked_for(http: httpx.Client, scan: bytes) -> None:
    """`model=name@sha256` is served if exactly that bundle is installed, and refused otherwise."""
    identity = http.get("/v1/models/hippocampus-mr").json()["identity"]

    answer = http.post(ROUTE, content=scan, params={"model": identity})
    assert answer.status_code == 202
    assert finished(http, answer.headers["location"])["model"] == identity

    answer = http.post(ROUTE, content=scan, params={"model": "hippocampus-mr@" + 64 * "0"})
    assert answer.status_code == 404
    assert answer.json()["type"] == "/problems/model-not-found"


@pytest.mark.parametrize("rest", ["", "/mask", "/confidence", "/summary"])
@pytest.mark.parametrize("job", ["0" * 32, "unknown", "..%2f..%2fjobs.sqlite", "%00", "x" * 5000, "%F0%9F%A7%A0"])
def test_an_unknown_job_is_404(http: httpx.Client, job: str, rest: str) -> None:
    """Any unknown id is a 404 that does not repeat it."""
    answer = http.get(f"{ROUTE}/{job}{rest}")

    assert answer.status_code == 404
    assert answer.headers["content-type"] == PROBLEM
    assert answer.json()["type"] in ("/problems/job-not-found", "/problems/not-found")
    assert job not in answer.text


def test_the_same_key_returns_the_same_job(http: httpx.Client, scan: bytes) -> None:
    """A scan sent twice with one Idempotency-Key is one job, while it runs and afterwards."""
    key = f"twice-{time.time_ns()}"
    first = send(http, scan, Prefer="respond-async", Idempotency_Key=key)
    second = send(http, scan, Prefer="respond-async", Idempotency_Key=key)
    third = send(http, scan, Idempotency_Key=key)

    assert first.status_code == 202
    assert first.json()["id"] == second.json()["id"] == third.json()["id"]
    assert third.json()["state"] == "succeeded"
    assert first.json()["created"] == third.json()["created"]


def test_a_key_is_not_reused_for_another_scan(http: httpx.Client, scan: bytes, patch: Nifti) -> None:
    """The same Idempotency-Key with another body is a 422, and the first job is unchanged."""
    key = f"reused-{time.time_ns()}"
    first = send(http, scan, Idempotency_Key=key)

    answer = send(http, patch(scan, descrip=b"another"), Idempotency_Key=key)

    assert answer.status_code == 422
    assert answer.headers["content-type"] == PROBLEM
    assert answer.json()["type"] == "/problems/idempotency-key-reused"
    assert http.get(first.headers["location"]).json()["state"] == "succeeded"


@pytest.mark.parametrize("prefer", ["wait=soon", "wait=", "wait=-1", "wait=1.5", "wait=99999999999"])
def test_a_wait_that_is_no_number_of_seconds_is_refused(http: httpx.Client, scan: bytes, prefer: str) -> None:
    """The answer says what to send."""
    answer = send(http, scan, Prefer=prefer)

    assert answer.status_code == 422
    assert answer.json()["type"] == "/problems/invalid-request"
    assert answer.json()["detail"].endswith("e.g. Prefer: wait=30.")


@pytest.mark.parametrize("prefer", ["respond-async", "handling=lenient", "return=minimal; foo", "WAIT"])
def test_other_preferences_are_ignored(http: httpx.Client, scan: bytes, prefer: str) -> None:
    """RFC 7240 lets a server ignore what it does not know."""
    assert send(http, scan, Prefer=prefer).status_code == 202


def test_a_list_of_preferences_is_understood(http: httpx.Client, scan: bytes) -> None:
    """`Prefer: respond-async, wait=50` waits, in one header line and in two (RFC 7240, section 2)."""
    one = http.post(ROUTE, content=scan, headers={"Prefer": "respond-async, wait=50"})
    two = http.post(ROUTE, content=scan, headers=[("Prefer", "respond-async"), ("Prefer", "wait=50")])

    assert [one.status_code, two.status_code] == [200, 200]


def test_a_failed_job_has_no_results(http: httpx.Client, nifti: Nifti) -> None:
    """The results of a failed job are a 409 that advises to mend the cause."""
    job = send(http, nifti(np.full((4, 5, 6), np.nan, np.float32))).json()

    assert (job["state"], job["progress"], job["seconds"]) == ("failed", 0, {})
    assert [name for name, link in job["links"].items() if link] == ["self"]
    for name in ("mask", "confidence", "summary"):
        answer = http.get(f"{job['links']['self']}/{name}")
        assert answer.status_code == 409
        assert answer.json()["type"] == "/problems/result-unavailable"


def test_a_scan_of_enormous_voxels_is_the_scans_fault(http: httpx.Client, nifti: Nifti) -> None:
    """Voxels of 10 m would need a grid of 10^17 voxels of 1 mm: refused, not an internal error."""
    answer = send(http, nifti(np.arange(120_000, dtype=np.int32).reshape(50, 50, 48), np.diag([1e4, 1e4, 1e4, 1])))

    problem = answer.json().get("problem") or answer.json()
    assert problem["status"] == 422, problem
    assert http.get("/v2/health/ready").json() == {"ready": True}


def test_every_job_of_these_tests_has_ended_in_one_way(http: httpx.Client, scan: bytes, server_state: Path) -> None:
    """No attempt is left, every result is complete, and every finished workflow succeeded for DBOS or was cancelled."""
    done(http, scan)
    deadline = time.monotonic() + 60
    with closing(sqlite3.connect(server_state / "jobs.sqlite")) as database:
        statuses = "SELECT DISTINCT status FROM workflow_status"
        while not (seen := {status for (status,) in database.execute(statuses)}) <= {"SUCCESS", "CANCELLED"}:
            assert time.monotonic() < deadline, seen
            time.sleep(0.1)

    assert list((server_state / "work").iterdir()) == []
    for result in (server_state / "results").iterdir():
        files = json.loads((result / "result.json").read_bytes())["files"]
        assert {file.name for file in result.iterdir()} == {*files, "result.json"}


def test_three_real_persons_are_segmented_well(http: httpx.Client, real_hippocampus: Path, tmp_path: Path) -> None:
    """On three test cases of different persons, the mean foreground Dice is above 0.8."""
    test = json.loads((real_hippocampus / "splits.json").read_bytes())["test"]
    persons = {(int(case.rpartition("_")[2]) + 1) // 2: case for case in reversed(test)}
    scores = []

    for case in sorted(persons.values())[:3]:
        job = done(http, (real_hippocampus / "imagesTr" / f"{case}.nii.gz").read_bytes())
        mask = image(http, job["links"]["mask"], tmp_path).get_fdata()
        reference = nib.Nifti1Image.from_filename(real_hippocampus / "labelsTr" / f"{case}.nii.gz").get_fdata()
        for label in (1, 2):
            predicted, expected = mask == label, reference == label
            scores.append(2 * (predicted & expected).sum() / (predicted.sum() + expected.sum()))
        assert http.get(job["links"]["summary"]).json()["statement"]["status"] != "withdrawn"

    assert len(scores) == 6
    assert np.mean(scores) > 0.8
    assert min(scores) > 0.5


@pytest.fixture(name="occupied")
def occupied_(http: httpx.Client, long: bytes) -> Iterator[dict[str, Any]]:
    """Yield a running job, which is cancelled afterwards unless the test did so."""
    job = http.post(ROUTE, content=long, params={"priority": "urgent"}).json()
    while http.get(job["links"]["self"]).json()["state"] == "queued":
        time.sleep(0.02)
    yield job
    http.post(job["links"]["cancel"])


@pytest.mark.parametrize(
    ("outputs", "kept"),
    [(["mask"], {"mask"}), (["summary", "mask"], {"mask", "summary"}), (["mask", "mask"], {"mask"})],
)
def test_only_what_was_asked_for_is_kept(http: httpx.Client, scan: bytes, outputs: list[str], kept: set[str]) -> None:
    """The job lists its outputs, and links to these results only."""
    job = http.post(ROUTE, content=scan, params={"outputs": outputs}, headers={"Prefer": "wait=50"}).json()

    assert job["state"] == "succeeded"
    assert {*job["outputs"]} == kept
    results = ("mask", "confidence", "summary", "probabilities", "uncertainty", "reference")
    assert {name for name in results if job["links"][name]} == kept
    assert http.get(f"{job['links']['self']}/mask").status_code == 200


def test_an_unknown_output_or_priority_is_refused(http: httpx.Client, scan: bytes) -> None:
    """The answer is a 422 with the parameter's name and without its value."""
    for name in ("outputs", "priority"):
        answer = http.post(ROUTE, content=scan, params={name: "everything"})
        assert answer.status_code == 422
        assert name in answer.json()["detail"]
        assert "everything" not in answer.text


def test_an_urgent_scan_goes_first(http: httpx.Client, nifti: Nifti, occupied: dict[str, Any]) -> None:
    """An urgent job overtakes waiting ones but not the running one; waiting jobs show their position."""
    assert occupied["priority"] == "urgent"
    normal = http.post(ROUTE, content=nifti()).json()
    urgent = http.post(ROUTE, content=nifti(), params={"priority": "urgent"}).json()

    jobs = [http.get(job["links"]["self"]).json() for job in (occupied, urgent, normal)]

    assert [job["queue_position"] for job in jobs] == [None, 1, 2]
    assert jobs[0]["state"] == "running"
    http.post(occupied["links"]["cancel"])
    first, second = (finished(http, job["links"]["self"]) for job in (urgent, normal))
    assert first["finished"] <= second["finished"]


def test_jobs_are_listed_page_by_page(http: httpx.Client, nifti: Nifti) -> None:
    """Seven jobs in pages of three appear once each, newest first, although an eighth is submitted meanwhile."""
    jobs = [http.post(ROUTE, content=nifti()).json()["id"] for _ in range(7)]
    listed: list[str] = []
    cursor: dict[str, str] = {}
    while len(listed) < 7:
        page = http.get(ROUTE, params={"limit": "3"} | cursor).json()
        listed += [job["id"] for job in page["jobs"]]
        cursor = {"cursor": page["next"]}
        http.post(ROUTE, content=nifti())

    assert listed[:7] == jobs[::-1]
    assert len(listed) == len({*listed})


def test_the_last_page_leads_nowhere(http: httpx.Client, nifti: Nifti) -> None:
    """The pages of a state together hold each of its jobs once, and the last has no `next`."""
    http.post(ROUTE, content=nifti(np.full((4, 5, 6), np.nan, np.float32)), headers={"Prefer": "wait=50"})
    pages: list[list[dict[str, Any]]] = []
    cursor: dict[str, str] = {}
    while True:
        page = http.get(ROUTE, params={"state": "failed", "limit": "2"} | cursor).json()
        pages.append(page["jobs"])
        if page["next"] is None:
            break
        cursor = {"cursor": page["next"]}

    jobs = [job for page in pages for job in page]
    assert {job["state"] for job in jobs} == {"failed"}
    assert len({job["id"] for job in jobs}) == len(jobs)
    assert [len(page) for page in pages[:-1]] == [2] * (len(pages) - 1)
    times = [(job["created"], job["id"]) for job in jobs]
    assert times == sorted(times, reverse=True)


FORGED = [
    b"",
    b"x",
    b"1:",
    b":" + b"0" * 32,
    b"-1:" + b"0" * 32,
    b"9" * 20 + b":" + b"0" * 32,
    b"1:" + b"x" * 32,
    b"\xff",
]


@pytest.mark.parametrize(
    "cursor", ["x", "====", "sch\u00f6n", "\x00", *[base64.urlsafe_b64encode(each).decode() for each in FORGED[1:]]]
)
def test_a_forged_cursor_is_refused(http: httpx.Client, cursor: str) -> None:
    """Any invalid cursor is a 422, never an internal error."""
    answer = http.get(ROUTE, params={"cursor": cursor})

    assert (answer.status_code, answer.json()["type"]) == (422, "/problems/invalid-request")
    assert "`next` of the page before" in answer.json()["detail"]


@pytest.mark.parametrize("created", [0, 1, 9_999_999_999_999])
def test_a_cursor_of_any_time_is_understood(http: httpx.Client, created: int) -> None:
    """A cursor may lie before the first job and long after the last."""
    cursor = base64.urlsafe_b64encode(f"{created}:{'0' * 32}".encode()).decode()

    answer = http.get(ROUTE, params={"cursor": cursor, "limit": 1})

    assert answer.status_code == 200
    assert bool(answer.json()["jobs"]) == (created > 1)


@pytest.mark.parametrize("parameters", [{"limit": 0}, {"limit": 201}, {"limit": "x"}, {"state": "lost"}])
def test_a_list_that_cannot_be_given_is_refused(http: httpx.Client, parameters: dict[str, Any]) -> None:
    """The answer is a 422 with the parameter's name."""
    answer = http.get(ROUTE, params=parameters)

    assert answer.status_code == 422
    assert next(iter(parameters)) in answer.json()["detail"]


def test_a_running_job_is_cancelled_and_the_next_is_served(
    http: httpx.Client, nifti: Nifti, occupied: dict[str, Any], server_state: Path
) -> None:
    """The answer is 202; the job stops at once without traces, and the process computes the next job."""
    answer = http.post(occupied["links"]["cancel"])

    assert answer.status_code == 202
    assert (answer.json()["state"], answer.json()["problem"]["type"]) == ("cancelled", "/problems/job-cancelled")
    assert [name for name, link in answer.json()["links"].items() if link] == ["self"]
    started = time.monotonic()
    assert done(http, nifti())["state"] == "succeeded"
    assert time.monotonic() - started < 20
    assert http.get(f"{ROUTE}/{occupied['id']}/mask").status_code == 409
    assert not (server_state / "results" / occupied["id"]).exists()
    assert http.post(f"{ROUTE}/{occupied['id']}/cancel").status_code == 202


def test_a_finished_job_is_not_cancelled(http: httpx.Client, nifti: Nifti) -> None:
    """The answer is 409, and the results remain."""
    job = done(http, nifti())

    answer = http.post(f"{job['links']['self']}/cancel")

    assert (answer.status_code, answer.json()["type"]) == (409, "/problems/job-finished")
    assert answer.headers["content-type"] == PROBLEM
    assert http.get(job["links"]["mask"]).status_code == 200


@pytest.mark.parametrize("when", ["running", "queued", "succeeded"])
def test_a_deleted_job_is_gone(
    http: httpx.Client, nifti: Nifti, occupied: dict[str, Any], server_state: Path, when: str
) -> None:
    """The answer is 204; then its id is unknown, its files are gone, and its key can be used anew."""
    key, content = {"Idempotency-Key": uuid.uuid4().hex}, nifti(descrip=uuid.uuid4().hex.encode())
    job = occupied
    if when != "running":
        job = http.post(ROUTE, content=content, headers=key).json()
    if when == "succeeded":
        http.post(occupied["links"]["cancel"])
        job = finished(http, job["links"]["self"])
    assert job["id"] in str(http.get(ROUTE, params={"limit": 200}).json())

    assert http.delete(job["links"]["self"]).status_code == 204

    for method, rest in (("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/mask"), ("GET", "/events")):
        answer = http.request(method, job["links"]["self"] + rest)
        assert (answer.status_code, answer.json()["type"]) == (404, "/problems/job-not-found")
    assert job["id"] not in str(http.get(ROUTE, params={"limit": 200}).json())
    assert not (server_state / "scans" / "local" / job["scan"]).exists()
    if when == "running":
        done(http, nifti())
    assert list(server_state.glob(f"*/{job['id']}")) == []
    if when == "queued":
        http.post(occupied["links"]["cancel"])
    again = http.post(ROUTE, content=content, headers=key | {"Prefer": "wait=50"}).json()
    assert again["state"] == "succeeded"
    assert again["id"] != occupied["id"]


def _holding(state: Path, traces: dict[str, bytes]) -> dict[str, list[str]]:
    """Return the names of the files in which each trace stands, or whose path it is part of."""
    return {
        name: [
            str(path.relative_to(state))
            for path in state.rglob("*")
            if trace in os.fsencode(path) or (path.is_file() and trace in path.read_bytes())
        ]
        for name, trace in traces.items()
    }


def test_f13_erasure_leaves_nothing(http: httpx.Client, nifti: Nifti, server_state: Path) -> None:
    """No byte of the state directory holds the job's id, the scan's hash or the name of its file, not even in the log."""
    content = nifti(descrip=uuid.uuid4().hex.encode())
    name = f"sub-canary{uuid.uuid4().hex}_T1w.nii.gz"
    answer = http.post(ROUTE, files={"file": (name, content)}, headers={"Prefer": "wait=50"}).json()
    traces = {"job": answer["id"].encode(), "scan": answer["scan"].encode(), "file": name.encode()}
    before = _holding(server_state, traces)
    assert "jobs.sqlite" in " ".join(before["job"] + before["scan"])

    assert http.delete(answer["links"]["self"]).status_code == 204

    deadline = time.monotonic() + 10
    while any((after := _holding(server_state, traces)).values()) and time.monotonic() < deadline:
        time.sleep(0.5)  # somebody else may have been reading the database
    assert after == {"job": [], "scan": [], "file": []}
