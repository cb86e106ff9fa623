import datetime as dt
import json
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import nibabel as nib
import numpy as np
import pytest
from fastapi import FastAPI

from service.api import problems, segmentations
from service.api.deps import Parts
from service.bundle.registry import Registry
from service.errors import JobNotFound
from service.schemas import Job, Links, Problem, State
from service.settings import Settings
from service.storage.local import StateDirectory

Nifti = Callable[..., bytes]
Ask = Callable[..., httpx.Response]

ROUTE = "/v1/segmentations"
STAGES = ["decode", "preprocess", "infer", "calibrate", "encode", "store"]
PROBLEM = "application/problem+json"


def send(http: httpx.Client, content: bytes, **headers: str) -> httpx.Response:
    """Send a scan and wait for its result unless told otherwise."""
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
    """Poll a job, as a client does that cannot wait, until it has ended."""
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
    return nib.load(path)


@pytest.fixture(name="scan", scope="module")
def scan_(nifti: Nifti) -> bytes:
    """Return a scan of two bright boxes in 36 x 48 x 32 oblique voxels, as large as those that the card knows."""
    turned = np.array([[0.8, -0.6, 0, -9], [0.6, 0.8, 0, -20], [0, 0, 1, 30], [0, 0, 0, 1]])
    array = np.random.default_rng(0).normal(100, 10, (36, 48, 32))
    array[12:20, 10:24, 10:20] += 60
    array[14:22, 24:38, 10:20] += 40
    return nifti(array.astype(np.float32), turned)


def test_a_client_that_waits_gets_the_finished_job(http: httpx.Client, scan: bytes) -> None:
    """With Prefer: wait the answer is 200, the job has succeeded and links to its results."""
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
    }
    assert (job["state"], job["progress"], job["stage"], job["problem"]) == ("succeeded", 1, None, None)
    assert list(job["seconds"]) == STAGES
    assert all(seconds >= 0 for seconds in job["seconds"].values())
    age = dt.datetime.now(dt.UTC) - dt.datetime.fromisoformat(job["created"])
    assert dt.timedelta() < age < dt.timedelta(minutes=2)


def test_a_client_that_does_not_wait_polls(http: httpx.Client, scan: bytes, tmp_path: Path) -> None:
    """Without Prefer the answer is 202 with Location and Retry-After; the results are there when the job has succeeded."""
    answer = http.post(ROUTE, content=scan)

    assert answer.status_code == 202
    assert answer.headers["retry-after"] == "1"
    assert "preference-applied" not in answer.headers
    assert answer.json()["state"] in ("queued", "running")
    assert answer.json()["links"] == {
        "self": answer.headers["location"],
        "mask": None,
        "confidence": None,
        "summary": None,
    }
    job = finished(http, answer.headers["location"])
    assert job["state"] == "succeeded"
    assert image(http, job["links"]["mask"], tmp_path).shape == (36, 48, 32)


def test_the_mask_lies_where_the_scan_lies(http: httpx.Client, scan: bytes, tmp_path: Path) -> None:
    """Mask and confidence of an oblique scan have its shape and, to the last bit, its affine."""
    path = tmp_path / "scan.nii"
    path.write_bytes(scan)
    expected = nib.load(path)
    links = done(http, scan)["links"]

    for name in ("mask", "confidence"):
        found = image(http, links[name], tmp_path)
        assert found.shape == expected.shape
        assert found.affine.tobytes() == expected.affine.tobytes()
        assert found.header.get_qform().tobytes() == expected.header.get_qform().tobytes()


def test_values_are_labels_and_confidences(http: httpx.Client, scan: bytes, tmp_path: Path) -> None:
    """The mask holds labels of the model, the confidence lies in [1/C, 1], and C is 3 here."""
    links = done(http, scan)["links"]
    mask = image(http, links["mask"], tmp_path).get_fdata()
    confidence = image(http, links["confidence"], tmp_path).get_fdata()

    assert set(np.unique(mask)) <= {0, 1, 2}
    assert confidence.min() >= 1 / 3
    assert confidence.max() <= 1
    assert np.ptp(confidence) > 0.1


def test_the_summary_counts_what_the_mask_holds(http: httpx.Client, scan: bytes, tmp_path: Path) -> None:
    """Voxels, volume and mean confidence of each structure follow from mask and confidence (1 voxel is 0.001 ml here)."""
    links = done(http, scan)["links"]
    mask = image(http, links["mask"], tmp_path).get_fdata()
    confidence = image(http, links["confidence"], tmp_path).get_fdata()

    summary = http.get(links["summary"]).json()

    assert [each["label"] for each in summary["structures"]] == [1, 2]
    for each in summary["structures"]:
        inside = mask == each["label"]
        assert each["voxels"] == inside.sum()
        assert each["volume_ml"] == pytest.approx(inside.sum() / 1000, rel=1e-5)
        if inside.any():
            assert each["mean_confidence"] == pytest.approx(confidence[inside].mean(), abs=1 / 255)
        else:
            assert each["mean_confidence"] is None
    assert summary["research_use_only"].startswith("For research use only")
    assert summary["warnings"] == []


def test_the_statement_is_the_cards(http: httpx.Client, scan: bytes) -> None:
    """A scan like those of the card carries the very statement that the model's page gives."""
    job = done(http, scan)
    model = http.get("/v1/models/hippocampus-mr").json()

    summary = http.get(job["links"]["summary"]).json()

    assert summary["model"] == job["model"] == model["identity"]
    assert summary["statement"]["status"] == "holds"
    assert summary["statement"] == model["statement"]


def test_the_statement_is_withdrawn_for_a_whole_head(http: httpx.Client, nifti: Nifti) -> None:
    """A field of view as long as a head is unlike the card's crops: no figure of the card is repeated."""
    array = np.random.default_rng(1).normal(100, 10, (61, 16, 16)).astype(np.float32)
    job = done(http, nifti(array, np.diag([3.0, 2, 2, 1])))

    statement = http.get(job["links"]["summary"]).json()["statement"]

    assert statement["status"] == "withdrawn"
    assert statement["text"].startswith("Withdrawn: this scan is unlike the ")
    assert statement["figures"] is None
    assert any(reason.startswith("extent along axis 1: 183.0 mm; ") for reason in statement["reasons"])


def test_a_repeated_header_warning_reaches_the_summary(http: httpx.Client, scan: bytes, patch: Nifti) -> None:
    """Two orientations that differ are reported to whoever reads the summary."""
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
    """`model=name@sha256` is served if that very bundle is installed, and is refused if another one is."""
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
    """Whatever stands where an id belongs, there is no such job or no such route, and nothing of it is repeated."""
    answer = http.get(f"{ROUTE}/{job}{rest}")

    assert answer.status_code == 404
    assert answer.headers["content-type"] == PROBLEM
    assert answer.json()["type"] in ("/problems/job-not-found", "/problems/not-found")
    assert job not in answer.text


def test_the_same_key_returns_the_same_job(http: httpx.Client, scan: bytes) -> None:
    """A client that sends a scan twice under one Idempotency-Key has one job, while it runs and afterwards."""
    key = f"twice-{time.time_ns()}"
    first = send(http, scan, Prefer="respond-async", Idempotency_Key=key)
    second = send(http, scan, Prefer="respond-async", Idempotency_Key=key)
    third = send(http, scan, Idempotency_Key=key)

    assert first.status_code == 202
    assert first.json()["id"] == second.json()["id"] == third.json()["id"]
    assert third.json()["state"] == "succeeded"
    assert first.json()["created"] == third.json()["created"]


def test_a_key_is_not_reused_for_another_scan(http: httpx.Client, scan: bytes, patch: Nifti) -> None:
    """The same Idempotency-Key with another body is 422, and the first job is untouched."""
    key = f"reused-{time.time_ns()}"
    first = send(http, scan, Idempotency_Key=key)

    answer = send(http, patch(scan, descrip=b"another"), Idempotency_Key=key)

    assert answer.status_code == 422
    assert answer.headers["content-type"] == PROBLEM
    assert answer.json()["type"] == "/problems/idempotency-key-reused"
    assert http.get(first.headers["location"]).json()["state"] == "succeeded"


@pytest.mark.parametrize("prefer", ["wait=soon", "wait=", "wait=-1", "wait=1.5", "wait=99999999999"])
def test_a_wait_that_is_no_number_of_seconds_is_refused(http: httpx.Client, scan: bytes, prefer: str) -> None:
    """The remedy is in the answer."""
    answer = send(http, scan, Prefer=prefer)

    assert answer.status_code == 422
    assert answer.json()["type"] == "/problems/invalid-request"
    assert answer.json()["detail"].endswith("e.g. Prefer: wait=30.")


@pytest.mark.parametrize(("prefer", "seconds"), [("wait=500", 60), ("wait=59", 59), ("wait=0", 0), ("", 0)])
def test_nobody_is_held_longer_than_the_setting(prefer: str, seconds: float) -> None:
    """Of the seconds that are asked for, at most CALIBRANT_MAX_WAIT_S are waited."""
    assert segmentations._seconds_to_wait(prefer, 60) == seconds


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
    """Its routes answer 409 with the advice to mend the cause."""
    job = send(http, nifti(np.full((4, 5, 6), np.nan, np.float32))).json()

    assert (job["state"], job["progress"], job["seconds"]) == ("failed", 0, {})
    assert job["links"] == {"self": job["links"]["self"], "mask": None, "confidence": None, "summary": None}
    for name in ("mask", "confidence", "summary"):
        answer = http.get(f"{job['links']['self']}/{name}")
        assert answer.status_code == 409
        assert answer.json()["type"] == "/problems/result-unavailable"


def test_a_scan_of_enormous_voxels_is_the_scans_fault(http: httpx.Client, nifti: Nifti) -> None:
    """Voxels of 10 m would become a grid of 10^17 voxels on the network's 1 mm: refused, not an internal error."""
    answer = send(http, nifti(np.arange(120_000, dtype=np.int32).reshape(50, 50, 48), np.diag([1e4, 1e4, 1e4, 1])))

    problem = answer.json().get("problem") or answer.json()
    assert problem["status"] == 422, problem
    assert http.get("/v2/health/ready").json() == {"ready": True}


def test_every_job_of_these_tests_has_ended_in_one_way(http: httpx.Client, scan: bytes, server_state: Path) -> None:
    """No attempt is left over, each result is complete, and each finished workflow is a success for DBOS."""
    done(http, scan)
    deadline = time.monotonic() + 60
    with closing(sqlite3.connect(server_state / "jobs.sqlite")) as database:
        statuses = "SELECT DISTINCT status FROM workflow_status"
        while (found := {status for (status,) in database.execute(statuses)}) != {"SUCCESS"}:
            assert time.monotonic() < deadline, found
            time.sleep(0.1)

    assert list((server_state / "work").iterdir()) == []
    for result in (server_state / "results").iterdir():
        files = json.loads((result / "result.json").read_bytes())["files"]
        assert {file.name for file in result.iterdir()} == {*files, "result.json"}


def test_three_real_persons_are_segmented_well(http: httpx.Client, hippocampus: Path, tmp_path: Path) -> None:
    """On three cases of the test split, each of another person, the mean foreground Dice is above 0.8."""
    test = json.loads((hippocampus / "splits.json").read_bytes())["test"]
    persons = {(int(case.rpartition("_")[2]) + 1) // 2: case for case in reversed(test)}
    scores = []

    for case in sorted(persons.values())[:3]:
        job = done(http, (hippocampus / "imagesTr" / f"{case}.nii.gz").read_bytes())
        mask = image(http, job["links"]["mask"], tmp_path).get_fdata()
        reference = nib.load(hippocampus / "labelsTr" / f"{case}.nii.gz").get_fdata()
        for label in (1, 2):
            found, expected = mask == label, reference == label
            scores.append(2 * (found & expected).sum() / (found.sum() + expected.sum()))
        assert http.get(job["links"]["summary"]).json()["statement"]["status"] == "holds"

    assert len(scores) == 6
    assert np.mean(scores) > 0.8
    assert min(scores) > 0.5


class StandingJobs:
    """A queue in which every job stands still in the state that its id names."""

    def find(self, identifier: str) -> Job:
        """Return the job; an id that names no state is unknown."""
        states: dict[str, State] = {"q": "queued", "r": "running", "s": "succeeded", "f": "failed"}
        if identifier not in states:
            msg = "unknown"
            raise JobNotFound(msg)
        problem = Problem(type="/problems/x", title="x", status=422, detail="x") if identifier == "f" else None
        return Job(
            id=identifier,
            state=states[identifier],
            model="m@0",
            created=dt.datetime(2026, 1, 31, tzinfo=dt.UTC),
            stage="infer" if identifier == "r" else None,
            progress=0.5,
            seconds={},
            problem=problem,
            links=Links(self=f"{ROUTE}/{identifier}"),
        )


@pytest.fixture(name="standing")
def standing_(tmp_path: Path) -> FastAPI:
    """Return the routes over jobs that stand still, so that no test depends on the speed of a computation."""
    app = FastAPI()
    problems.install(app)
    app.include_router(segmentations.router)
    state = StateDirectory(tmp_path)
    app.state.parts = Parts(Settings(state_dir=tmp_path), state, Registry(), StandingJobs())  # type: ignore[arg-type]
    return app


@pytest.mark.parametrize("name", ["mask", "confidence", "summary"])
@pytest.mark.parametrize(("job", "state"), [("q", "queued"), ("r", "running")])
def test_results_before_the_end_are_409(ask: Ask, standing: FastAPI, job: str, state: str, name: str) -> None:
    """A job that has not finished says so, and where to look for its state."""
    answer = ask(standing, "GET", f"{ROUTE}/{job}/{name}")

    assert answer.status_code == 409
    assert answer.headers["content-type"] == PROBLEM
    assert answer.json() == {
        "type": "/problems/result-not-ready",
        "title": "The segmentation has not finished",
        "status": 409,
        "detail": f"The segmentation is {state}. Ask for {ROUTE}/{job} until it has succeeded.",
    }


@pytest.mark.parametrize("job", ["f", "s"])
def test_a_result_that_is_not_there_is_409(ask: Ask, standing: FastAPI, job: str) -> None:
    """A failed job, and one whose files were removed, have no result to give."""
    answer = ask(standing, "GET", f"{ROUTE}/{job}/mask")

    assert answer.status_code == 409
    assert answer.json()["type"] == "/problems/result-unavailable"
